import {
  type DescMessage,
  type DescMethodServerStreaming,
  type DescMethodUnary,
  fromBinary,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";

export type Unary = DescMethodUnary<DescMessage, DescMessage>;
export type Streaming = DescMethodServerStreaming<DescMessage, DescMessage>;

/** Return what gRPC has to know of a method: its path, and how its messages are written and read. */
export function codecOf<M extends Unary | Streaming>(method: M) {
  return [
    `/${method.parent.typeName}/${method.name}`,
    (request: MessageShape<M["input"]>) => Buffer.from(toBinary(method.input, request)),
    (data: Buffer) => fromBinary(method.output, data) as MessageShape<M["output"]>,
  ] as const;
}
