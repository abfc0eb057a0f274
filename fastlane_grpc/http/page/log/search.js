// Search for a text, in rows that are loaded and in the rest of the log on the server.

import { readAgain } from "../api.js";
import { bytesOf, SYSTEM, textOf } from "./output.js";

const ESCAPES = /\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b\n]{0,4096}(?:\x07|\x1b\\)?|[ -/]*[0-~])/g;
// What is kept of an incomplete line, for a text that continues in the next chunk.
const MAX_CARRY = 4096;
const STEP_LINES = 20000;

/** Return the places of a text in rows: [{row, at}]. Small and capital letters are the same. */
export function matchesIn(rows, needle, most = 2000) {
  const found = [];
  const wanted = needle.toLowerCase();
  if (!wanted) return found;
  for (const row of rows) {
    if (!row.runs) continue;
    const text = textOf(row).toLowerCase();
    for (let at = text.indexOf(wanted); at >= 0; at = text.indexOf(wanted, at + wanted.length)) {
      found.push({ row, at });
      if (found.length >= most) return found;
    }
  }
  return found;
}

/** Finds lines with a text in messages, as they come. Much faster than making rows of them. */
export class Scanner {
  next = 1;
  #wanted;
  #sources = new Map();

  constructor(needle) {
    this.#wanted = needle.toLowerCase();
  }

  /** Return the numbers of the lines of a message that have the text. */
  push(message) {
    const found = [];
    for (const chunk of message.chunks ?? []) {
      if (chunk.source !== SYSTEM) this.#chunk(chunk, found);
    }
    if (message.first_line !== undefined) this.next = Number(message.first_line);
    return found;
  }

  #chunk(chunk, found) {
    let source = this.#sources.get(chunk.source);
    if (!source) {
      source = { decoder: new TextDecoder(), carry: "" };
      this.#sources.set(chunk.source, source);
    }
    let text = source.carry + source.decoder.decode(bytesOf(chunk.data ?? ""), { stream: true });
    if (text.includes("\x1b")) text = text.replace(ESCAPES, "");
    const lower = text.toLowerCase();
    let line = this.next, counted = 0;
    for (let at = lower.indexOf(this.#wanted); at >= 0; at = lower.indexOf(this.#wanted, at + 1)) {
      line += lineBreaks(lower, counted, at);
      counted = at;
      if (found.at(-1) !== line) found.push(line);
    }
    const last = lower.lastIndexOf("\n");
    this.next = line + lineBreaks(lower, counted, lower.length);
    source.carry = text.slice(Math.max(last + 1, text.length - MAX_CARRY));
  }
}

function lineBreaks(text, begin, end) {
  let count = 0;
  for (let at = text.indexOf("\n", begin); at >= 0 && at < end; at = text.indexOf("\n", at + 1)) count++;
  return count;
}

/** Return the number of the first line from `begin` to before `end` that has the text; null for none. */
export async function firstLine(source, needle, begin, end, signal, onProgress) {
  let from = begin;
  return readAgain(async () => {
    const scanner = new Scanner(needle);
    for await (const message of source.messages({ start_line: from, follow: false }, signal)) {
      const found = scanner.push(message).find((line) => line >= from && line < end);
      if (found !== undefined) return found;
      if (scanner.next >= end) return null;
      from = Math.max(from, scanner.next);
      onProgress(scanner.next);
    }
    return null;
  }, signal);
}

/** Return the number of the last line from `begin` to before `end` that has the text; null for none. */
export async function lastLine(source, needle, begin, end, signal, onProgress) {
  for (let stop = end; stop > begin; stop -= STEP_LINES) {
    const start = Math.max(begin, stop - STEP_LINES);
    const last = await readAgain(() => lastLineOfStep(source, needle, start, stop, signal), signal);
    if (last !== null) return last;
    onProgress(start);
  }
  return null;
}

async function lastLineOfStep(source, needle, begin, end, signal) {
  const scanner = new Scanner(needle);
  let last = null;
  for await (const message of source.messages({ start_line: begin, follow: false }, signal)) {
    for (const line of scanner.push(message)) {
      if (line >= begin && line < end) last = line;
    }
    if (scanner.next >= end) break;
  }
  return last;
}
