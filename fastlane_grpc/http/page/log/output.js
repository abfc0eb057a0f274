// Messages of a log stream as lines: bytes to characters, to what a terminal shows, to numbered lines.

import { EscapeParser } from "./escape_parser.js";
import { LineBuffer } from "./line_buffer.js";

export const STDOUT = "SOURCE_STDOUT", STDERR = "SOURCE_STDERR", SYSTEM = "SOURCE_SYSTEM";

/**
 * The lines of a log from one of its positions on.
 *
 * A row is {kind: "line", number, source, time, runs, cut}, or {kind: "gap", source, missing, cause}. A line of the
 * container has the number of its line break, in the order in which the line breaks were received; system lines have none.
 */
export class LogOutput {
  /** The number of the next line; null while it is not known. */
  nextNumber = null;
  #sources = new Map();
  #rows = [];

  /** Return the rows that a message completes. */
  push(message) {
    for (const chunk of message.chunks ?? []) this.#source(chunk.source).push(chunk);
    if (message.gap) this.#gap(message.gap);
    if (message.end?.sealed) this.finish();
    // In the first message, and after a gap in which lines were lost: the number of the line that ends next.
    if (message.first_line !== undefined) this.nextNumber = Number(message.first_line);
    return this.#take();
  }

  /** Return the lines that have no line break yet, in the order in which they began. */
  openLines() {
    return [...this.#sources.values()]
      .filter((source) => !source.buffer.isEmpty)
      .sort((one, other) => one.time - other.time)
      .map((source) => ({ kind: "line", number: null, source: source.name, time: source.time, ...source.buffer.line() }));
  }

  /** Complete all open lines: the log ends here. */
  finish() {
    for (const source of this.#sources.values()) source.end();
  }

  #take() {
    const rows = this.#rows;
    this.#rows = [];
    return rows;
  }

  #source(name) {
    let source = this.#sources.get(name);
    if (!source) {
      source = new SourceOutput(name, (row, isNumbered) => this.#add(row, isNumbered));
      this.#sources.set(name, source);
    }
    return source;
  }

  #add(row, isNumbered) {
    if (isNumbered && row.source !== SYSTEM && this.nextNumber !== null) row.number = this.nextNumber++;
    this.#rows.push(row);
  }

  #gap(gap) {
    this.#source(gap.source).interrupt();
    const missing = gap.missing_bytes === undefined ? null : Number(gap.missing_bytes);
    this.#rows.push({ kind: "gap", number: null, source: gap.source, missing, cause: gap.cause ?? "" });
  }
}

/** One source of a log. */
class SourceOutput {
  time = 0;
  #decoder = decoder();
  #parser;
  #add;
  #chunkTime = 0;

  constructor(name, add) {
    this.name = name;
    this.#add = add;
    this.buffer = new LineBuffer({ onLineBreak: () => this.#complete(true) });
    this.#parser = new EscapeParser(this.buffer);
  }

  push(chunk) {
    this.#chunkTime = Date.parse(chunk.time);
    if (this.buffer.isEmpty) this.time = this.#chunkTime;
    this.#parser.parse(this.#decoder.decode(bytesOf(chunk.data ?? ""), { stream: true }));
  }

  end() {
    this.#parser.parse(this.#decoder.decode());
    if (!this.buffer.isEmpty) this.#complete(true);
  }

  /** Bytes are missing: what follows does not continue the line, nor a character or sequence that was begun. */
  interrupt() {
    this.#parser.parse(this.#decoder.decode());
    if (!this.buffer.isEmpty) this.#complete(false);
    this.#decoder = decoder();
    this.#parser = new EscapeParser(this.buffer);
  }

  #complete(isNumbered) {
    this.#add({ kind: "line", number: null, source: this.name, time: this.time, ...this.buffer.finish() }, isNumbered);
    this.time = this.#chunkTime;
  }
}

/** A decoder that keeps what a chunk has of a character, and shows invalid bytes as U+FFFD. */
function decoder() {
  return new TextDecoder("utf-8", { ignoreBOM: true });
}

export function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let index = 0; index < text.length; index++) bytes[index] = text.charCodeAt(index);
  return bytes;
}

/** Return the text of a row, as it is copied and searched. */
export function textOf(row) {
  return row.runs ? row.runs.map((run) => run.text).join("") : "";
}
