/** Runs a command in a container as if it ran here: its output comes live, and the exit status is the job's. With --job
 * it follows a job that is there already. */
import { once } from "node:events";
import { parseArgs } from "node:util";

import { Client } from "fastlane-client";
import { LogGap_Cause, Source } from "fastlane-client/v1";

const USAGE = "usage: tail [--address HOST:PORT] [--task NAME] (--job ID | IMAGE [WORD...])";

async function main(words: string[]): Promise<number> {
  // Words after the image are the command's, also if they look like options of this program.
  const isValue = (at: number): boolean => /^--(address|task|job)$/.test(words[at - 1] ?? "");
  const at = words.findIndex((word, index) => !word.startsWith("-") && !isValue(index));
  const [flags, command] = at < 0 ? [words, []] : [words.slice(0, at), words.slice(at)];
  const { values } = parseArgs({
    args: flags,
    options: {
      address: { type: "string", default: process.env["FASTLANE_ADDRESS"] || "127.0.0.1:7020" },
      task: { type: "string", default: "tail" },
      job: { type: "string" },
    },
  });
  const [image, ...args] = command;
  if ((image === undefined) === (values.job === undefined)) {
    throw new Error(`give either an image or --job\n${USAGE}`);
  }
  const client = new Client(values.address);
  try {
    const jobId = values.job ?? (await client.enqueue({ taskId: values.task, spec: { image: image!, args } })).id;
    if (!values.job) {
      // The first Ctrl-C stops the job, while its output goes on; the second one ends this program alone.
      process.once("SIGINT", () => void client.stop(jobId, "Ctrl-C").catch(fail));
    }
    for await (const { chunks, event } of client.tailJob({ jobId, sources: [Source.STDOUT, Source.STDERR] })) {
      for (const { source, data } of chunks) {
        const out = source === Source.STDERR ? process.stderr : process.stdout;
        if (!out.write(data)) {
          await once(out, "drain");
        }
      }
      if (event?.case === "gap") {
        const { source, cause } = event.value;
        console.error(`tail: bytes of ${Source[source]} are missing here (${LogGap_Cause[cause]})`);
      } else if (event?.case === "jobEnd") {
        return event.value.exitStatus;
      }
    }
    throw new Error("the log ended early");
  } finally {
    client.close();
  }
}

function fail(error: Error): void {
  console.error(`tail: ${error.message}`);
  process.exitCode = 1;
}

// A reader that has left ends this program, not the job.
for (const out of [process.stdout, process.stderr]) {
  out.on("error", () => process.exit(1));
}
main(process.argv.slice(2)).then((status) => (process.exitCode = status), fail);
