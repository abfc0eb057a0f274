// The log of one execution on the server: its end, which is followed, and any other part of it by line numbers.

import { lines, path, persistently, readAgain } from "../api.js";
import { LineWindow } from "./line_window.js";
import { LogOutput } from "./output.js";

/** Lines with which a log opens, and which are kept of its end. */
export const TAIL_LINES = 500;
const TAIL_WEIGHT = 1 << 20;
// Bytes of a part after which it is cut, however few lines it has.
const MAX_PART_BYTES = 8 << 20;

export class LogSource {
  constructor(executionId) {
    this.path = path("executions", executionId, "logs");
  }

  messages(query, signal) {
    return lines(this.path, { number_lines: true, ...query }, signal);
  }

  /** Return the rows of the lines `begin` to `end`, of those there are now, and whether they reach the end of the log. */
  part(begin, end, signal) {
    return readAgain(() => this.#part(begin, end, signal), signal);
  }

  async #part(begin, end, signal) {
    const stop = new AbortController();
    const abort = () => stop.abort();
    signal.addEventListener("abort", abort);
    const output = new LogOutput();
    let rows = [];
    let received = 0;
    try {
      for await (const message of this.messages({ start_line: Math.max(1, begin), follow: false }, stop.signal)) {
        // Chunk by chunk: of a message that goes on beyond the end, the rest is never made lines.
        for (const chunk of message.chunks ?? []) {
          rows = rows.concat(output.push({ chunks: [chunk] }));
          received += (chunk.data ?? "").length;
          if (output.nextNumber > end || received > MAX_PART_BYTES) return { rows: upTo(rows, end), isEnd: false };
        }
        rows = rows.concat(output.push({ ...message, chunks: [] }));
        if (message.end) return { rows: upTo(rows, end), isEnd: true };
        if (output.nextNumber > end) break;
      }
      return { rows: upTo(rows, end), isEnd: false };
    } finally {
      signal.removeEventListener("abort", abort);
      stop.abort();
    }
  }
}

/** Return the rows up to the line with the number `end`. */
function upTo(rows, end) {
  const beyond = rows.findIndex((row) => row.number !== null && row.number > end);
  return beyond < 0 ? rows : rows.slice(0, beyond);
}

/** The end of a log, followed through interruptions from the very byte. Keeps the last rows. */
export class LogTail {
  output = new LogOutput();
  kept = new LineWindow(TAIL_LINES, TAIL_WEIGHT);
  end = null;
  #cursor = "";

  constructor(source) {
    this.source = source;
  }

  /** Follow to the end of the log. `onRows(rows)` after each message with output, `onState(state)`, `onEnd(end)`. */
  run({ signal, onConnected, onRows, onState, onEnd }) {
    return persistently(async (signal, progress) => {
      const query = this.#cursor ? { cursor: this.#cursor } : { tail: TAIL_LINES };
      for await (const message of this.source.messages(query, signal)) {
        progress();
        this.#cursor = message.cursor;
        const rows = this.output.push(message);
        this.kept.append(rows);
        if (message.state) onState(message.state);
        if (message.chunks || rows.length) onRows(rows);
        if (message.end) {
          this.end = message.end;
          onEnd(message.end);
          return true;
        }
      }
      return false;
    }, { signal, onConnected });
  }
}
