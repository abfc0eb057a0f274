import { setTimeout as sleep } from "node:timers/promises";

import { fromBinary } from "@bufbuild/protobuf";
import { anyUnpack, durationMs } from "@bufbuild/protobuf/wkt";
import { type Metadata, type ServiceError, status } from "@grpc/grpc-js";

import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema, StatusSchema } from "./gen/google/rpc/details_pb.js";

/** A field at fault: its path, and what is wrong with it. */
export interface Violation {
  field: string;
  description: string;
}

const { UNAVAILABLE, DEADLINE_EXCEEDED, CANCELLED, INTERNAL, UNKNOWN } = status;
/** The codes of interruptions, unless the server has a reason. */
const PASSING: readonly status[] = [UNAVAILABLE, DEADLINE_EXCEEDED, CANCELLED, INTERNAL, UNKNOWN];
const TLS_FAILED = /certificate|altnames|SSL routines|EPROTO/;
export const LONGEST_PAUSE_MS = 5_000;

/** A call that failed: refused by the server, or interrupted on the way. */
export class FastlaneError extends Error {
  override readonly name = "FastlaneError";
  /** A name of fastlane.v1.ErrorReason without its prefix. Empty: the error is not the server's. */
  readonly reason: string = "";
  /** The fields at fault of a request that is not valid. */
  readonly violations: readonly Violation[] = [];
  /** What the error is about, for example the id of the job. */
  readonly metadata: Readonly<Record<string, string>> = {};
  /** How long the server asks to wait; undefined if it does not ask. */
  readonly retryAfterMs: number | undefined;

  /** `code`: the status code of gRPC. DATA_LOSS: a log is not what the server says it is; found by the client. */
  constructor(
    readonly code: status,
    message: string,
    trailers?: Metadata,
  ) {
    super(message);
    for (const detail of detailsOf(trailers)) {
      const info = anyUnpack(detail, ErrorInfoSchema);
      if (info?.domain === "fastlane") {
        this.reason = info.reason;
        this.metadata = info.metadata;
      }
      this.violations = anyUnpack(detail, BadRequestSchema)?.fieldViolations ?? this.violations;
      const retry = anyUnpack(detail, RetryInfoSchema);
      if (retry) {
        this.retryAfterMs = retry.retryDelay ? durationMs(retry.retryDelay) : 0;
      }
    }
  }

  /** Whether the same call may succeed later. */
  get passing(): boolean {
    return this.retryAfterMs !== undefined || (this.reason === "" && PASSING.includes(this.code));
  }
}

/** Return the error of a failed call; what is no error of gRPC is thrown on. */
export function errorOf(error: unknown): FastlaneError {
  if (error instanceof FastlaneError) {
    return error;
  }
  const { code = NaN, details = "", metadata } = error as Partial<ServiceError>;
  if (!metadata) {
    throw error;
  }
  // The handshake failed, which does not pass by itself.
  const refused = code === UNAVAILABLE && TLS_FAILED.test(details);
  // For an answer that is nonsense gRPC has none of its codes.
  return new FastlaneError(refused ? status.UNAUTHENTICATED : code in status ? code : UNKNOWN, details, metadata);
}

/** A stream that ended like this may be called again. Its request is never too large: without a reason,
 * RESOURCE_EXHAUSTED is a proxy's or the connection's. */
export function isResumable(error: FastlaneError): boolean {
  return error.passing || (error.code === status.RESOURCE_EXHAUSTED && error.reason === "");
}

/** Wait before the next try: longer after each failure, on top of what the server asks for. Up to a half is taken off
 * at random, so that many clients do not come back together. An aborted signal ends the wait with its reason. */
export async function pause(failures: number, error: FastlaneError, signal: AbortSignal | undefined): Promise<void> {
  const longest = Math.min(100 * 2 ** failures, LONGEST_PAUSE_MS);
  const pauseMs = (error.retryAfterMs ?? 0) + longest * (1 - Math.random() / 2);
  await sleep(pauseMs, undefined, signal && { signal }).catch(() => signal?.throwIfAborted());
}

/** Details that cannot be read are none: the code says enough. */
function detailsOf(trailers: Metadata | undefined) {
  const [packed] = trailers?.get("grpc-status-details-bin") ?? [];
  try {
    return packed instanceof Uint8Array ? fromBinary(StatusSchema, packed).details : [];
  } catch {
    return [];
  }
}
