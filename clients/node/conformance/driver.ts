/** The conformance driver of the Node client: see clients/conformance.md. */
import { closeSync, openSync, writeFileSync, writeSync } from "node:fs";
import { createInterface } from "node:readline";

import { Client, FastlaneError, type LogEvent } from "fastlane-client";
import { type Job, Source } from "fastlane-client/v1";

const FAILED = 70;
const SOURCES = [Source.STDOUT, Source.STDERR];

/** What one line asks for, and what it did. */
class Call {
  private readonly pairs: [string, string][];
  private readonly options: Map<string, string>;
  private readonly stdout: number;
  private readonly stderr: number;
  private readonly report = {
    job: undefined as unknown,
    exit_status: undefined as number | undefined,
    cursor: "",
    gaps: [] as unknown[],
    states: [] as number[],
    executions: [] as string[],
    disconnects: 0,
    error: undefined as unknown,
  };

  constructor(
    private readonly operation: string,
    words: string[],
  ) {
    this.pairs = words.map((word) => {
      const at = word.indexOf("=");
      return [word.slice(0, at), word.slice(at + 1)];
    });
    this.options = new Map(this.pairs);
    this.stdout = openSync(this.option("stdout"), "w");
    this.stderr = openSync(this.option("stderr"), "w");
  }

  /** Make the call, write its report and return its status. */
  async status(): Promise<number> {
    let client: Client | undefined;
    try {
      client = new Client(this.option("address"), {
        tlsCa: this.option("tls_ca"),
        tlsCert: this.option("tls_cert"),
        tlsKey: this.option("tls_key"),
        token: this.option("token"),
        tokenFile: this.option("token_file"),
      });
      return await this.run(client);
    } catch (error) {
      if (!(error instanceof FastlaneError)) {
        throw error;
      }
      const { code, reason, message, metadata } = error;
      const violations = error.violations.map(({ field, description }) => [field, description]);
      this.report.error = { code, reason, message, violations, metadata };
      return FAILED;
    } finally {
      client?.close();
      writeFileSync(this.option("report"), JSON.stringify(this.report));
      closeSync(this.stdout);
      closeSync(this.stderr);
    }
  }

  private option(name: string): string {
    return this.options.get(name) ?? "";
  }

  private async run(client: Client): Promise<number> {
    const seconds = this.option("timeout_seconds");
    const limit = seconds ? { timeoutMs: Number(seconds) * 1000 } : {};
    switch (this.operation) {
      case "enqueue": {
        const args = this.pairs.filter(([name]) => name === "arg").map(([, value]) => value);
        const spec = { image: this.option("image"), args };
        return this.tell(await client.enqueue({ taskId: this.option("task"), spec, requestId: this.option("request_id") }, limit));
      }
      case "get":
        return this.tell(await client.get(this.option("job"), limit));
      case "stop":
        return this.tell(await client.stop(this.option("job"), this.option("note"), limit));
      default:
        return this.tail(client);
    }
  }

  private tell(job: Job): number {
    this.report.job = { id: job.id, execution_id: job.execution?.id, state: job.state };
    return 0;
  }

  private async tail(client: Client): Promise<number> {
    const nanos = Math.round(Number(this.option("heartbeat_seconds")) * 1e9);
    const asked = {
      cursor: this.option("cursor"),
      sources: SOURCES,
      text: this.option("text") === "true",
      ...(nanos && { heartbeatInterval: { seconds: BigInt(Math.floor(nanos / 1e9)), nanos: nanos % 1e9 } }),
    };
    const following = this.options.has("job")
      ? client.tailJob({ jobId: this.option("job"), ...asked })
      : client.tail({ executionId: this.option("execution"), ...asked });
    const enough = Number(this.option("stop_after_bytes"));
    let written = 0;
    for await (const { chunks, event, cursor } of following) {
      for (const { source, data, text } of chunks) {
        written += write(source === Source.STDERR ? this.stderr : this.stdout, asked.text ? Buffer.from(text) : data);
      }
      this.note(event);
      this.report.cursor = cursor;
      if (enough && written >= enough) {
        return 0;
      }
    }
    return this.report.exit_status ?? FAILED;
  }

  private note(event: LogEvent | undefined): void {
    switch (event?.case) {
      case "gap": {
        const { source, offset, missingBytes, cause } = event.value;
        const missing = missingBytes === undefined ? null : Number(missingBytes);
        this.report.gaps.push({ source, offset: Number(offset), missing_bytes: missing, cause });
        break;
      }
      case "state":
        if (this.report.states.at(-1) !== event.value.state) {
          this.report.states.push(event.value.state);
        }
        break;
      case "execution":
        this.report.executions.push(event.value.execution?.id ?? "");
        break;
      case "interruption":
        this.report.disconnects++;
        break;
      case "end":
      case "jobEnd":
        // Of a job, the last one counts.
        this.report.exit_status = event.value.exitStatus;
    }
  }
}

/** Write all of the data, also when the pipe takes a part. */
function write(file: number, data: Uint8Array): number {
  for (let at = 0; at < data.length; ) {
    at += writeSync(file, data, at);
  }
  return data.length;
}

for await (const line of createInterface({ input: process.stdin })) {
  const [operation = "", ...words] = JSON.parse(line) as string[];
  console.log(await new Call(operation, words).status());
}
