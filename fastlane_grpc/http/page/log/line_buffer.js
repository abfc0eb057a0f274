// One line of a terminal: text that may be overwritten after a carriage return, as progress bars do.

import { PLAIN, styleAfter } from "./style.js";

/** Characters of a line that are kept. What is beyond is counted. */
export const MAX_LINE = 16384;
const TAB = 8;

/** The screen of an EscapeParser, of one line. `finish` returns the line and begins the next. */
export class LineBuffer {
  style = PLAIN;
  #runs = [];
  #length = 0;
  // The position, where it is not the end of the line.
  #column = -1;
  // One text and one style for each column, from when the line is first overwritten.
  #glyphs = null;
  #styles = null;
  #cut = 0;

  constructor({ onLineBreak }) {
    this.onLineBreak = onLineBreak;
  }

  get isEmpty() {
    return this.#length === 0 && this.#cut === 0 && !this.#glyphs?.length;
  }

  print(text) {
    if (this.#column < 0 && !this.#glyphs) this.#append(text, this.style);
    else this.#overwrite(text, this.style);
  }

  /** Characters that would not be seen, or reorder others, are shown by their number. */
  hidden(code) {
    if (code === 0xfeff) return;
    this.print(code < 0xa0 ? "\ufffd" : `\u27e8U+${code.toString(16).toUpperCase().padStart(4, "0")}\u27e9`);
  }

  control(code) {
    switch (code) {
      case 0x0a:
        this.onLineBreak();
        break;
      case 0x0d:
        this.#column = 0;
        break;
      case 0x08:
        this.#toCells();
        this.#column = Math.max(0, this.#position() - 1);
        break;
      case 0x09:
        if (this.#column < 0 && !this.#glyphs) this.#append("\t", this.style);
        else {
          this.#toCells();
          this.#column = Math.min(MAX_LINE, (Math.floor(this.#position() / TAB) + 1) * TAB);
        }
        break;
      case 0x07: // bell
      case 0x0b: // vertical tab and form feed
      case 0x0c:
      case 0x0e: // other character sets
      case 0x0f:
        break;
      default:
        this.print(code === 0x7f ? "\u2421" : String.fromCharCode(0x2400 + code));
    }
  }

  csi(final, parameters) {
    if (final === "m") {
      this.style = styleAfter(this.style, parameters);
      return;
    }
    const count = /^\d{1,6}$/.test(parameters[0]) ? Math.min(Number(parameters[0]), MAX_LINE) : 0;
    switch (final) {
      case "K":
        this.#erase(count);
        break;
      case "G":
        this.#toCells();
        this.#column = Math.max(0, count - 1);
        break;
      case "C":
        this.#toCells();
        this.#column = Math.min(MAX_LINE, this.#position() + Math.max(1, count));
        break;
      case "D":
        this.#toCells();
        this.#column = Math.max(0, this.#position() - Math.max(1, count));
        break;
      case "P":
        this.#toCells();
        this.#glyphs.splice(this.#position(), Math.max(1, count));
        this.#styles.splice(this.#position(), Math.max(1, count));
        break;
    }
  }

  /** Return the line so far: runs of text of one style, and the number of characters beyond those kept. */
  line() {
    return { runs: this.#glyphs ? this.#runsOfCells() : this.#runs.map((run) => ({ ...run })), cut: this.#cut };
  }

  finish() {
    const line = { runs: this.#glyphs ? this.#runsOfCells() : this.#runs, cut: this.#cut };
    this.#runs = [];
    this.#length = this.#cut = 0;
    this.#column = -1;
    this.#glyphs = this.#styles = null;
    return line;
  }

  #append(text, style) {
    const room = MAX_LINE - this.#length;
    if (text.length > room) {
      this.#cut += text.length - Math.max(0, room);
      text = text.slice(0, Math.max(0, room));
      // Not half a character.
      if (/[\ud800-\udbff]$/.test(text)) text = text.slice(0, -1);
      if (!text) return;
    }
    this.#length += text.length;
    const last = this.#runs.at(-1);
    if (last && last.style === style) last.text += text;
    else this.#runs.push({ text, style });
  }

  #overwrite(text, style) {
    this.#toCells();
    const glyphs = this.#glyphs, styles = this.#styles;
    let column = this.#position();
    for (const glyph of text) {
      const code = glyph.codePointAt(0);
      if (isCombining(code) && column > 0) {
        // Bounded: a pile of accents is no progress bar.
        if (glyphs[column - 1]?.length < 16) glyphs[column - 1] += glyph;
        continue;
      }
      if (column >= MAX_LINE) {
        this.#cut++;
        continue;
      }
      while (glyphs.length < column) {
        glyphs.push(" ");
        styles.push(PLAIN);
      }
      glyphs[column] = glyph;
      styles[column++] = style;
      if (isWide(code)) {
        glyphs[column] = "";
        styles[column++] = style;
      }
    }
    this.#column = column;
  }

  #erase(kind) {
    if (kind === 2 || kind === 0 && this.#column === 0) {
      const column = this.#column < 0 ? this.#position() : this.#column;
      this.#glyphs = [];
      this.#styles = [];
      this.#runs = [];
      this.#length = 0;
      this.#column = column;
    } else if (kind === 0) {
      if (this.#column < 0) return;
      this.#toCells();
      this.#glyphs.length = Math.min(this.#glyphs.length, this.#column);
      this.#styles.length = this.#glyphs.length;
    } else if (kind === 1) {
      this.#toCells();
      const end = Math.min(this.#position() + 1, this.#glyphs.length);
      this.#glyphs.fill(" ", 0, end);
      this.#styles.fill(PLAIN, 0, end);
    }
  }

  #position() {
    return this.#column >= 0 ? this.#column : this.#glyphs ? this.#glyphs.length : 0;
  }

  #toCells() {
    if (this.#glyphs) return;
    const column = this.#column;
    const runs = this.#runs;
    this.#glyphs = [];
    this.#styles = [];
    this.#runs = [];
    this.#length = 0;
    this.#column = 0;
    for (const { text, style } of runs) {
      for (const [index, part] of text.split("\t").entries()) {
        if (index) {
          const stop = Math.min(MAX_LINE, (Math.floor(this.#column / TAB) + 1) * TAB);
          this.#overwrite(" ".repeat(stop - this.#column), style);
        }
        this.#overwrite(part, style);
      }
    }
    if (column >= 0) this.#column = column;
  }

  #runsOfCells() {
    const runs = [];
    for (let column = 0; column < this.#glyphs.length; column++) {
      const style = this.#styles[column];
      const last = runs.at(-1);
      if (last && last.style === style) last.text += this.#glyphs[column];
      else runs.push({ text: this.#glyphs[column], style });
    }
    return runs;
  }
}

function isCombining(code) {
  return code >= 0x300 && (/^\p{M}$/u.test(String.fromCodePoint(code)) || code === 0x200d);
}

function isWide(code) {
  return code >= 0x1100 && (
    code <= 0x115f || code >= 0x2e80 && code <= 0xa4cf || code >= 0xac00 && code <= 0xd7a3
    || code >= 0xf900 && code <= 0xfaff || code >= 0xfe30 && code <= 0xfe6f || code >= 0xff00 && code <= 0xff60
    || code >= 0xffe0 && code <= 0xffe6 || code >= 0x1f300 && code <= 0x1faff || code >= 0x20000 && code <= 0x3fffd
  );
}
