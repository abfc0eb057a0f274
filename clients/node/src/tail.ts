import { crc32 } from "node:zlib";

import { equals, type MessageShape } from "@bufbuild/protobuf";
import { durationMs } from "@bufbuild/protobuf/wkt";
import { type ClientReadableStream, status } from "@grpc/grpc-js";

import { errorOf, FastlaneError, isResumable, pause } from "./errors.js";
import {
  type ExecutionService,
  type JobService,
  type LogChunk,
  type LogEnd,
  type LogState,
  LogStateSchema,
  Source,
  type StreamExecutionLogsRequest,
  type StreamJobLogsResponse,
} from "./gen/fastlane/v1/fastlane_pb.js";

/** What happens in a log beside output. `interruption`: the tail was cut off, and resumes by itself. */
export type LogEvent =
  | Exclude<StreamJobLogsResponse["event"], { case: undefined } | { case: "heartbeat" }>
  | { case: "interruption"; value: FastlaneError };

/** A step of a tail: output or one event. */
export interface LogMessage {
  /** Output, in order. */
  chunks: LogChunk[];
  event: LogEvent | undefined;
  /** The point after this message. Store it after the output, and resume there. */
  cursor: string;
}

type Method = typeof ExecutionService.method.streamExecutionLogs | typeof JobService.method.streamJobLogs;
type Request = MessageShape<Method["input"]>;
type Response = MessageShape<Method["output"]>;
type Messages = AsyncGenerator<LogMessage, void, undefined>;
/** Makes a call, which begins at the cursor of the request. */
type Open<R> = (request: R) => ClientReadableStream<Response>;

/** Yield what a log brings until it is over or fails for good. After an interruption, no byte is repeated or lost. */
export async function* follow<R extends Request>(open: Open<R>, asked: R, signal?: AbortSignal): Messages {
  const tail = new Tail(asked);
  for (;;) {
    let error: FastlaneError;
    try {
      signal?.throwIfAborted();
      yield* read(open({ ...asked, cursor: tail.cursor }), tail, signal);
      return;
    } catch (caught) {
      signal?.throwIfAborted();
      error = errorOf(caught);
    }
    if (!isResumable(error)) {
      throw error;
    }
    yield { chunks: [], event: { case: "interruption", value: error }, cursor: tail.cursor };
    await pause(tail.failures++, error, signal);
  }
}

/** Yield what a call brings, until the tail is over. It throws if the call fails or ends early. */
async function* read(stream: ClientReadableStream<Response>, tail: Tail, signal?: AbortSignal): Messages {
  // A call that is left reports its cancellation when nobody reads it any more.
  stream.on("error", () => undefined);
  const cancel = (): void => stream.cancel();
  signal?.addEventListener("abort", cancel);
  try {
    const messages: AsyncIterator<Response> = stream[Symbol.asyncIterator]();
    for (let count = 1; !tail.over; count++) {
      const message = await receive(messages, tail.silenceMs, cancel);
      // The first message of a call comes before anything is read: only the second one is progress.
      if (count > 1) {
        tail.failures = 0;
      }
      const event = tail.take(message);
      tail.cursor = message.cursor;
      if (event || message.chunks.length > 0) {
        yield { chunks: message.chunks, event, cursor: tail.cursor };
      }
    }
  } finally {
    signal?.removeEventListener("abort", cancel);
    cancel();
  }
}

/** Return the next message. A dead connection says nothing: only the time in which a message is waited for counts. */
async function receive(messages: AsyncIterator<Response>, silenceMs: number, cancel: () => void): Promise<Response> {
  let silent = false;
  const watch = setTimeout(() => {
    silent = true;
    cancel();
  }, silenceMs);
  try {
    const { done, value } = await messages.next();
    if (!done) {
      return value;
    }
  } catch (error) {
    if (!silent) {
      throw error;
    }
    throw new FastlaneError(status.UNAVAILABLE, `no message for ${silenceMs / 1000} s, not even a heartbeat`);
  } finally {
    clearTimeout(watch);
  }
  throw new FastlaneError(status.UNAVAILABLE, "the stream ended early, without an end");
}

/** The offset of the next byte of a source, if it is known; the checksum of all before it, if they are the whole. */
interface Position {
  offset: bigint;
  sum: number;
  known: boolean;
  whole: boolean;
}

/** The progress of one iteration. */
class Tail {
  over = false;
  cursor: string;
  /** Interruptions without progress. */
  failures = 0;
  readonly silenceMs: number;
  readonly #text: boolean;
  readonly #sources: readonly Source[];
  // Of the current execution, whose log is read from its first byte or not.
  #whole: boolean;
  #executionId = "";
  #state: LogState | undefined;
  #ended = false;
  #positions = new Map<Source, Position>();

  constructor(asked: Request) {
    const startLine = (asked as Partial<StreamExecutionLogsRequest>).startLine ?? 0n;
    this.cursor = asked.cursor;
    // An interval that is too short is for the server to refuse: its answer needs a moment.
    const heartbeatMs = asked.heartbeatInterval ? durationMs(asked.heartbeatInterval) : 10_000;
    this.silenceMs = Math.max(300, Math.min(3 * heartbeatMs, 2 ** 31 - 1));
    this.#text = asked.text;
    this.#sources = asked.sources.length > 0 ? asked.sources : [Source.STDOUT, Source.STDERR, Source.SYSTEM];
    this.#whole = asked.cursor === "" && asked.tailLines === undefined && !asked.sinceTime && startLine <= 1n;
  }

  /** Check a message and return its event, if there is one to tell. A call that resumes begins with what was told
   * before: the execution, its state, perhaps its end. */
  take(message: Response): LogEvent | undefined {
    for (const chunk of message.chunks) {
      this.#advance(chunk.source, chunk.offset, chunk.data);
    }
    const ofJob = message.$typeName === "fastlane.v1.StreamJobLogsResponse";
    const { event } = message;
    switch (event.case) {
      case "execution": {
        const id = event.value.execution?.id ?? "";
        if (id === this.#executionId) {
          return undefined;
        }
        this.#whole ||= this.#executionId !== "";
        this.#executionId = id;
        this.#state = undefined;
        this.#ended = false;
        this.#positions = new Map();
        return event;
      }
      case "jobEnd":
        this.over = true;
        return event;
      case "gap": {
        const at = this.#advance(event.value.source, event.value.offset, new Uint8Array());
        at.offset += event.value.missingBytes ?? 0n;
        at.whole = false;
        return event;
      }
      case "state":
        if (this.#state && equals(LogStateSchema, event.value, this.#state)) {
          return undefined;
        }
        this.#state = event.value;
        return event;
      case "end":
        if (this.#ended) {
          return undefined;
        }
        this.#verify(event.value);
        this.#ended = true;
        this.over = !ofJob;
        return event;
      default:
        return undefined;
    }
  }

  #position(source: Source): Position {
    const at = this.#positions.get(source) ?? { offset: 0n, sum: 0, known: this.#whole, whole: this.#whole };
    this.#positions.set(source, at);
    return at;
  }

  /** Move the position of the source, which has to be at this offset. Text may leap, but never goes back. */
  #advance(source: Source, offset: bigint, data: Uint8Array): Position {
    const at = this.#position(source);
    if (at.known && offset !== at.offset && !(this.#text && offset > at.offset)) {
      throw inconsistent(source, `byte ${offset}, expected byte ${at.offset}`);
    }
    at.offset = offset + BigInt(data.length);
    at.known = true;
    at.sum = crc32(data, at.sum);
    return at;
  }

  /** Compare what came of an execution with what the server has. */
  #verify(end: LogEnd): void {
    if (!end.sealed || this.#text) {
      return;
    }
    for (const source of this.#sources) {
      const has = end.totals.find((each) => each.source === source);
      const at = this.#position(source);
      const bytes = has?.bytes ?? 0n;
      if ((at.known && at.offset !== bytes) || (at.whole && has?.crc32 !== undefined && at.sum !== has.crc32)) {
        const came = `${at.offset} bytes with checksum ${hex(at.sum)} came`;
        throw inconsistent(source, `${came}, the server has ${bytes} with ${hex(has?.crc32 ?? 0)}`);
      }
    }
  }
}

function inconsistent(source: Source, what: string): FastlaneError {
  return new FastlaneError(status.DATA_LOSS, `the log is inconsistent in ${Source[source] ?? source}: ${what}`);
}

function hex(sum: number): string {
  return sum.toString(16).padStart(8, "0");
}
