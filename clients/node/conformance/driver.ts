/** The conformance driver of the Node client: see clients/conformance.md. */
import { writeFileSync, writeSync } from "node:fs";

import { Client, FastlaneError, type LogEvent } from "fastlane-client";
import { type Job, Source } from "fastlane-client/v1";

const FAILED = 70;
const SOURCES = [Source.STDOUT, Source.STDERR];

const [operation = "", ...words] = process.argv.slice(2);
const pairs = words.map((word): [string, string] => {
  const at = word.indexOf("=");
  return [word.slice(0, at), word.slice(at + 1)];
});
const options = new Map(pairs);
const report = {
  job: undefined as unknown,
  exit_status: undefined as number | undefined,
  cursor: "",
  gaps: [] as unknown[],
  states: [] as number[],
  executions: [] as string[],
  disconnects: 0,
  error: undefined as unknown,
};

function option(name: string): string {
  return options.get(name) ?? "";
}

async function run(client: Client): Promise<number> {
  const seconds = option("timeout_seconds");
  const limit = seconds ? { timeoutMs: Number(seconds) * 1000 } : {};
  switch (operation) {
    case "enqueue": {
      const args = pairs.filter(([name]) => name === "arg").map(([, value]) => value);
      const spec = { image: option("image"), args };
      return tell(await client.enqueue({ taskId: option("task"), spec, requestId: option("request_id") }, limit));
    }
    case "get":
      return tell(await client.get(option("job"), limit));
    case "stop":
      return tell(await client.stop(option("job"), option("note"), limit));
    default:
      return tail(client);
  }
}

function tell(job: Job): number {
  report.job = { id: job.id, execution_id: job.execution?.id, state: job.state };
  return 0;
}

async function tail(client: Client): Promise<number> {
  const nanos = Math.round(Number(option("heartbeat_seconds")) * 1e9);
  const asked = {
    cursor: option("cursor"),
    sources: SOURCES,
    text: option("text") === "true",
    ...(nanos && { heartbeatInterval: { seconds: BigInt(Math.floor(nanos / 1e9)), nanos: nanos % 1e9 } }),
  };
  const following = options.has("job")
    ? client.tailJob({ jobId: option("job"), ...asked })
    : client.tail({ executionId: option("execution"), ...asked });
  const enough = Number(option("stop_after_bytes"));
  let written = 0;
  for await (const { chunks, event, cursor } of following) {
    for (const { source, data, text } of chunks) {
      written += write(source === Source.STDERR ? 2 : 1, asked.text ? Buffer.from(text) : data);
    }
    note(event);
    report.cursor = cursor;
    if (enough && written >= enough) {
      return 0;
    }
  }
  return report.exit_status ?? FAILED;
}

/** Write all of the data, also when the pipe takes a part. */
function write(file: number, data: Uint8Array): number {
  for (let at = 0; at < data.length; ) {
    at += writeSync(file, data, at);
  }
  return data.length;
}

function note(event: LogEvent | undefined): void {
  switch (event?.case) {
    case "gap": {
      const { source, offset, missingBytes, cause } = event.value;
      const missing = missingBytes === undefined ? null : Number(missingBytes);
      report.gaps.push({ source, offset: Number(offset), missing_bytes: missing, cause });
      break;
    }
    case "state":
      if (report.states.at(-1) !== event.value.state) {
        report.states.push(event.value.state);
      }
      break;
    case "execution":
      report.executions.push(event.value.execution?.id ?? "");
      break;
    case "interruption":
      report.disconnects++;
      break;
    case "end":
    case "jobEnd":
      // Of a job, the last one counts.
      report.exit_status = event.value.exitStatus;
  }
}

let client: Client | undefined;
try {
  client = new Client(option("address"), {
    tlsCa: option("tls_ca"),
    tlsCert: option("tls_cert"),
    tlsKey: option("tls_key"),
    token: option("token"),
    tokenFile: option("token_file"),
  });
  process.exitCode = await run(client);
} catch (error) {
  process.exitCode = FAILED;
  if (!(error instanceof FastlaneError)) {
    throw error;
  }
  const { code, reason, message, metadata } = error;
  const violations = error.violations.map(({ field, description }) => [field, description]);
  report.error = { code, reason, message, violations, metadata };
} finally {
  client?.close();
  writeFileSync(option("report"), JSON.stringify(report));
}
