import { randomUUID } from "node:crypto";

import { create, type MessageInitShape, type MessageShape } from "@bufbuild/protobuf";
import {
  type ChannelCredentials,
  type ChannelOptions,
  Client as Connection,
  credentials as kinds,
  Metadata,
  type ServiceError,
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
import { codecOf, type Unary } from "./methods.js";
import { follow, type LogMessage } from "./tail.js";

const TIMEOUT_MS = 30_000;
const CONNECTION: ChannelOptions = {
  // Find a dead connection while a call is open.
  "grpc.keepalive_time_ms": 30_000,
  "grpc.keepalive_timeout_ms": 10_000,
  // Of its own accord gRPC pauses up to two minutes between connects.
  "grpc.initial_reconnect_backoff_ms": 100,
  "grpc.max_reconnect_backoff_ms": LONGEST_PAUSE_MS,
};
const LOOPBACK = /^(localhost|127(\.\d+){3}|\[::1\])(:|$)/;

export interface ClientOptions {
  /** Of TLS; without, the connection is not encrypted. */
  credentials?: ChannelCredentials;
  /** Sent with each call, for a server that requires one. */
  token?: string;
  /** Options of gRPC. */
  channel?: ChannelOptions;
}

export interface CallOptions {
  /** The time for a call and its repetitions, 30 seconds by default. */
  timeoutMs?: number;
  /** Ends the call with the reason of the signal. */
  signal?: AbortSignal;
}

/** A connection to a server. Calls are repeated while the server cannot be reached. */
export class Client {
  readonly #connection: Connection;
  readonly #metadata = new Metadata();

  /** `address`: HOST:PORT. The client connects when the first call is made. */
  constructor(address: string, { credentials, token = "", channel = {} }: ClientOptions = {}) {
    if (!/^[ -~]*$/.test(token)) {
      throw new TypeError("token: it may have printable characters of ASCII only"); // Never repeats it, as gRPC would.
    }
    if (token) {
      this.#metadata.set("authorization", `Bearer ${token}`);
    }
    const proxy = LOOPBACK.test(address) ? { "grpc.enable_http_proxy": 0 } : {};
    const options = { ...CONNECTION, ...proxy, ...channel };
    this.#connection = new Connection(address, credentials ?? kinds.createInsecure(), options);
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
  tail(
    request: MessageInitShape<typeof StreamExecutionLogsRequestSchema>,
    signal?: AbortSignal,
  ): AsyncIterable<LogMessage> {
    const asked = create(StreamExecutionLogsRequestSchema, request);
    return follow(this.#connection, this.#metadata, ExecutionService.method.streamExecutionLogs, asked, signal);
  }

  /** Follow the logs of all executions of a job, one after another, to the event `jobEnd`. */
  tailJob(
    request: MessageInitShape<typeof StreamJobLogsRequestSchema>,
    signal?: AbortSignal,
  ): AsyncIterable<LogMessage> {
    const asked = create(StreamJobLogsRequestSchema, request);
    return follow(this.#connection, this.#metadata, JobService.method.streamJobLogs, asked, signal);
  }

  /** Make a call that may be sent twice, and repeat it while the error may pass and there is time. */
  async #call<M extends Unary>(
    method: M,
    init: MessageInitShape<M["input"]>,
    { timeoutMs = TIMEOUT_MS, signal }: CallOptions = {},
  ): Promise<MessageShape<M["output"]>> {
    const deadline = Date.now() + timeoutMs;
    const request = create(method.input, init) as MessageShape<M["input"]>;
    for (let failures = 0; ; failures++) {
      let error: FastlaneError;
      try {
        return await this.#once(method, request, deadline, signal);
      } catch (caught) {
        signal?.throwIfAborted();
        error = errorOf(caught);
      }
      if (!error.passing || Date.now() + (error.retryAfterMs ?? 0) >= deadline) {
        throw error;
      }
      await pause(failures, error, signal);
    }
  }

  #once<M extends Unary>(method: M, request: MessageShape<M["input"]>, deadline: number, signal?: AbortSignal) {
    signal?.throwIfAborted();
    return new Promise<MessageShape<M["output"]>>((resolve, reject) => {
      const answered = (error: ServiceError | null, answer?: MessageShape<M["output"]>): void => {
        signal?.removeEventListener("abort", cancel);
        return error ? reject(error) : resolve(answer!);
      };
      const codec = codecOf(method);
      const call = this.#connection.makeUnaryRequest(...codec, request, this.#metadata.clone(), { deadline }, answered);
      const cancel = (): void => call.cancel();
      signal?.addEventListener("abort", cancel);
    });
  }
}
