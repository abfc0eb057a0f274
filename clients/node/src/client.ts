import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";

import { create, type MessageInitShape, type MessageShape } from "@bufbuild/protobuf";
import {
  type ChannelCredentials,
  type ChannelOptions,
  Client as Connection,
  credentials,
  Metadata,
  type ServiceError,
  status,
} from "@grpc/grpc-js";

import { errorOf, FastlaneError, LONGEST_PAUSE_MS, pause } from "./errors.js";
import {
  EnqueueJobRequestSchema,
  ExecutionService,
  type Job,
  JobService,
  StreamExecutionLogsRequestSchema,
  StreamJobLogsRequestSchema,
} from "./gen/fastlane/v1/fastlane_pb.js";
import { codecOf, type Streaming, type Unary } from "./methods.js";
import { follow, type LogMessage } from "./tail.js";

const CONNECTION: ChannelOptions = {
  // Find a dead connection while a call is open.
  "grpc.keepalive_time_ms": 30_000,
  "grpc.keepalive_timeout_ms": 10_000,
  // Of its own accord gRPC pauses up to two minutes between connects.
  "grpc.initial_reconnect_backoff_ms": 100,
  "grpc.max_reconnect_backoff_ms": LONGEST_PAUSE_MS,
};
const LOOPBACK = /^(localhost|127(\.\d+){3}|\[::1\])(:|$)/;

/** How a client connects; without any: not encrypted, without a token. */
export interface ClientOptions {
  /** Turns TLS on: a PEM file with the authority that signed the server's certificate. "system": those of Node. */
  tlsCa?: string;
  /** Turns TLS on: a PEM file with the client's own certificate, for a server that requires one. */
  tlsCert?: string;
  /** A PEM file with the key of `tlsCert`. */
  tlsKey?: string;
  /** Shown with each call, for a server that requires one. */
  token?: string;
  /** A file with the token, which is read anew for each call. */
  tokenFile?: string;
  /** Options of gRPC. */
  channel?: ChannelOptions;
}

export interface CallOptions {
  /** The time for a call and its repetitions, 30 seconds by default. */
  timeoutMs?: number;
  /** Ends the call with the reason of the signal. */
  signal?: AbortSignal;
}

type ExecutionLogs = MessageInitShape<typeof StreamExecutionLogsRequestSchema>;
type JobLogs = MessageInitShape<typeof StreamJobLogsRequestSchema>;

/** A connection to a server. Calls are repeated while the server cannot be reached. */
export class Client {
  readonly #connection: Connection;
  readonly #options: ClientOptions;

  /** `address`: HOST:PORT. The client connects when the first call is made. */
  constructor(address: string, options: ClientOptions = {}) {
    const direct = LOOPBACK.test(address) && { "grpc.enable_http_proxy": 0 };
    this.#options = options;
    this.#connection = new Connection(address, credentialsOf(options), { ...CONNECTION, ...direct, ...options.channel });
  }

  /** End all calls and tails. */
  close(): void {
    this.#connection.close();
  }

  /** Store a job and return it with its first execution. Without a `requestId` the client makes one, so that an
   * interrupted call is repeated and makes no second job. */
  async enqueue(request: MessageInitShape<typeof EnqueueJobRequestSchema>, options?: CallOptions): Promise<Job> {
    const asked = create(EnqueueJobRequestSchema, { ...request, requestId: request.requestId || randomUUID() });
    return (await this.#call(JobService.method.enqueueJob, asked, options)).job!;
  }

  /** Return the job as it is now, with its current execution. */
  async get(jobId: string, options?: CallOptions): Promise<Job> {
    return (await this.#call(JobService.method.getJob, { jobId }, options)).job!;
  }

  /** End the job: its signal, the grace period, then a kill. It returns when that has begun. */
  async stop(jobId: string, note = "", options?: CallOptions): Promise<Job> {
    return (await this.#call(JobService.method.stopJob, { jobId, note }, options)).job!;
  }

  /** Follow the log of an execution, live or stored, to its event `end`. */
  tail(request: ExecutionLogs, signal?: AbortSignal): AsyncIterable<LogMessage> {
    const asked = create(StreamExecutionLogsRequestSchema, request);
    return follow((at) => this.#stream(ExecutionService.method.streamExecutionLogs, at), asked, signal);
  }

  /** Follow the logs of all executions of a job, one after another, to the event `jobEnd`. */
  tailJob(request: JobLogs, signal?: AbortSignal): AsyncIterable<LogMessage> {
    const asked = create(StreamJobLogsRequestSchema, request);
    return follow((at) => this.#stream(JobService.method.streamJobLogs, at), asked, signal);
  }

  #stream<M extends Streaming>(method: M, request: MessageShape<M["input"]>) {
    return this.#connection.makeServerStreamRequest(...codecOf(method), request, metadataOf(this.#options), {});
  }

  /** Make a call that may be sent twice, and repeat it while the error may pass and there is time. */
  async #call<M extends Unary>(
    method: M,
    init: MessageInitShape<M["input"]>,
    { timeoutMs = 30_000, signal }: CallOptions = {},
  ): Promise<MessageShape<M["output"]>> {
    // By a clock that nobody sets.
    const end = performance.now() + timeoutMs;
    const request = create(method.input, init) as MessageShape<M["input"]>;
    let error: FastlaneError | undefined;
    for (let failures = 0; ; failures++) {
      try {
        return await this.#once(method, request, end - performance.now(), signal);
      } catch (caught) {
        signal?.throwIfAborted();
        const failure = errorOf(caught);
        // The end of the time does not say why: the failure before it does.
        error = failure.code === status.DEADLINE_EXCEEDED ? (error ?? failure) : failure;
      }
      if (!error.passing || performance.now() + (error.retryAfterMs ?? 0) >= end) {
        throw error;
      }
      await pause(failures, error, signal);
    }
  }

  #once<M extends Unary>(method: M, request: MessageShape<M["input"]>, leftMs: number, signal?: AbortSignal) {
    signal?.throwIfAborted();
    return new Promise<MessageShape<M["output"]>>((resolve, reject) => {
      const answered = (error: ServiceError | null, answer?: MessageShape<M["output"]>): void => {
        signal?.removeEventListener("abort", cancel);
        return error ? reject(error) : resolve(answer!);
      };
      const sent = [request, metadataOf(this.#options), { deadline: Date.now() + leftMs }] as const;
      const call = this.#connection.makeUnaryRequest(...codecOf(method), ...sent, answered);
      const cancel = (): void => call.cancel();
      signal?.addEventListener("abort", cancel);
    });
  }
}

function credentialsOf({ tlsCa = "", tlsCert = "", tlsKey = "" }: ClientOptions): ChannelCredentials {
  if (!tlsCa && !tlsCert && !tlsKey) {
    return credentials.createInsecure();
  }
  return usable(`TLS with tlsCert "${tlsCert}", tlsKey "${tlsKey}"`, () => {
    const authorities = tlsCa && tlsCa !== "system" ? readFileSync(tlsCa) : null;
    return credentials.createSsl(authorities, ...(tlsCert || tlsKey ? [readFileSync(tlsKey), readFileSync(tlsCert)] : []));
  });
}

function metadataOf({ token = "", tokenFile = "" }: ClientOptions): Metadata {
  const metadata = new Metadata();
  const shown = (tokenFile ? usable("the token", () => readFileSync(tokenFile, "utf8")) : token).trim();
  if (!/^[ -~]*$/.test(shown)) {
    // Never repeats it, as gRPC would.
    throw new FastlaneError(status.UNAUTHENTICATED, "a token has printable characters of ASCII only");
  }
  if (shown) {
    metadata.set("authorization", `Bearer ${shown}`);
  }
  return metadata;
}

/** Return what is made of files, or throw that they cannot be used. */
function usable<T>(what: string, made: () => T): T {
  try {
    return made();
  } catch (error) {
    throw new FastlaneError(status.UNAUTHENTICATED, `${what}: ${error}`);
  }
}
