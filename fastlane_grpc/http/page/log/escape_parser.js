// Splits the text of a terminal into printable text, control characters and escape sequences, over any chunk edges.

// Everything that is not simply printed. The last ones reorder text or break lines without being seen.
const SPECIAL = /[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]/g;
// A sequence that is longer is no sequence: nothing may swallow the output after it.
const MAX_SEQUENCE = 256;
const MAX_STRING = 4096;
const MAX_PARAMETERS = 64;

const TEXT = 0, ESCAPE = 1, CSI = 2, STRING = 3, STRING_ESCAPE = 4, CHARSET = 5;

/**
 * Calls `screen.print(text)`, `screen.control(code)`, `screen.hidden(code)` and `screen.csi(final, parameters)`.
 * Titles, links, clipboard commands and all other strings for a terminal are dropped.
 */
export class EscapeParser {
  #screen;
  #state = TEXT;
  #sequence = "";
  #length = 0;

  constructor(screen) {
    this.#screen = screen;
  }

  parse(text) {
    let at = 0;
    while (at < text.length) {
      at = this.#state === TEXT ? this.#text(text, at) : this.#step(text, at);
    }
  }

  #text(text, at) {
    SPECIAL.lastIndex = at;
    const found = SPECIAL.exec(text);
    const end = found ? found.index : text.length;
    if (end > at) this.#screen.print(text.slice(at, end));
    if (!found) return end;
    const code = text.charCodeAt(end);
    if (code === 0x1b) this.#enter(ESCAPE);
    else if (code === 0x9b) this.#enter(CSI);
    else if (code === 0x90 || code === 0x98 || code >= 0x9d && code <= 0x9f) this.#enter(STRING);
    else if (code < 0x20 || code === 0x7f) this.#screen.control(code);
    else this.#screen.hidden(code);
    return end + 1;
  }

  #enter(state) {
    this.#state = state;
    this.#sequence = "";
    this.#length = 0;
  }

  #step(text, at) {
    const code = text.charCodeAt(at);
    // A line break ends whatever was not complete: a terminal would wait, a log goes on.
    if (code === 0x0a || code === 0x0d && this.#state !== CSI) {
      this.#state = TEXT;
      return at;
    }
    const limit = this.#state === STRING || this.#state === STRING_ESCAPE ? MAX_STRING : MAX_SEQUENCE;
    if (++this.#length > limit || code === 0x18 || code === 0x1a) {
      this.#state = TEXT;
      return at + 1;
    }
    switch (this.#state) {
      case ESCAPE:
        return this.#escape(code, at);
      case CSI:
        if (code >= 0x40 && code <= 0x7e) {
          this.#state = TEXT;
          this.#finish(String.fromCharCode(code));
        } else if (code >= 0x20 && code <= 0x3f) this.#sequence += text[at];
        else {
          this.#state = TEXT;
          return at;
        }
        return at + 1;
      case CHARSET:
        this.#state = TEXT;
        return at + 1;
      case STRING:
        if (code === 0x07 || code === 0x9c) this.#state = TEXT;
        else if (code === 0x1b) this.#state = STRING_ESCAPE;
        return at + 1;
      default: // after ESC within a string: the backslash of its end, or a sequence of its own
        this.#state = TEXT;
        if (code === 0x5c) return at + 1;
        this.#enter(ESCAPE);
        return at;
    }
  }

  #escape(code, at) {
    if (code === 0x5b) this.#enter(CSI);
    else if (code === 0x5d || code === 0x50 || code === 0x58 || code === 0x5e || code === 0x5f) this.#enter(STRING);
    else if (code >= 0x20 && code <= 0x2f) this.#state = CHARSET;
    else {
      this.#state = TEXT;
      if (code < 0x20 || code > 0x7e) return at;
    }
    return at + 1;
  }

  #finish(final) {
    // Private sequences ("?25h") change a terminal, not the text.
    if (/[<-?\x20-\x2f]/.test(this.#sequence)) return;
    const parameters = this.#sequence.split(";").slice(0, MAX_PARAMETERS);
    this.#screen.csi(final, parameters);
  }
}
