// The style of text as SGR sequences set it. Equal styles are one object.

export const BOLD = 1, DIM = 2, ITALIC = 4, UNDERLINE = 8, INVERSE = 16, STRIKE = 32;
/** A colour: none, an index of the palette (0 to 255), or TRUE_COLOUR + 0xRRGGBB. */
export const NO_COLOUR = -1, TRUE_COLOUR = 0x1000000;

const FLAGS = new Map([[1, BOLD], [2, DIM], [3, ITALIC], [4, UNDERLINE], [7, INVERSE], [9, STRIKE]]);
const UNSET = new Map([[21, BOLD], [22, BOLD | DIM], [23, ITALIC], [24, UNDERLINE], [27, INVERSE], [29, STRIKE]]);
const MAX_KEPT = 4096;
const kept = new Map();

export const PLAIN = style(NO_COLOUR, NO_COLOUR, 0);

function style(foreground, background, flags) {
  const key = `${foreground},${background},${flags}`;
  let known = kept.get(key);
  if (!known) {
    if (kept.size >= MAX_KEPT) kept.clear();
    known = Object.freeze({ foreground, background, flags });
    kept.set(key, known);
  }
  return known;
}

/** Return the style after an SGR sequence with these parameters, each a text such as "1", "" or "38:2::1:2:3". */
export function styleAfter(before, parameters) {
  let { foreground, background, flags } = before;
  for (let index = 0; index < parameters.length; index++) {
    const parts = parameters[index].split(":");
    const code = number(parts[0]);
    if (code === 0) {
      foreground = background = NO_COLOUR;
      flags = 0;
    } else if (code === 4 && parts.length > 1) flags = number(parts[1]) ? flags | UNDERLINE : flags & ~UNDERLINE;
    else if (FLAGS.has(code)) flags |= FLAGS.get(code);
    else if (UNSET.has(code)) flags &= ~UNSET.get(code);
    else if (code >= 30 && code <= 37) foreground = code - 30;
    else if (code >= 90 && code <= 97) foreground = code - 90 + 8;
    else if (code === 39) foreground = NO_COLOUR;
    else if (code >= 40 && code <= 47) background = code - 40;
    else if (code >= 100 && code <= 107) background = code - 100 + 8;
    else if (code === 49) background = NO_COLOUR;
    else if (code === 38 || code === 48) {
      const [colour, used] = parts.length > 1 ? [colourOf(parts.slice(1)), 0] : colourFrom(parameters, index + 1);
      index += used;
      if (colour === null) continue;
      if (code === 38) foreground = colour;
      else background = colour;
    }
  }
  return style(foreground, background, flags);
}

/** Return the colour of "38;5;N" and "38;2;R;G;B" after the first number, and how many parameters it took. */
function colourFrom(parameters, index) {
  const kind = number(parameters[index] ?? "");
  const used = kind === 5 ? 2 : kind === 2 ? 4 : 1;
  return [colourOf(parameters.slice(index, index + used)), used];
}

function colourOf(parts) {
  const kind = number(parts[0] ?? "");
  if (kind === 5 && parts.length >= 2) {
    const index = number(parts[1]);
    return index <= 255 ? index : null;
  }
  if (kind !== 2 || parts.length < 4) return null;
  // The colour space may stand, or be left empty, before the three numbers.
  const [red, green, blue] = parts.slice(parts.length > 4 ? 2 : 1).map(number);
  if (!(red <= 255 && green <= 255 && blue <= 255)) return null;
  return TRUE_COLOUR + (red << 16 | green << 8 | blue);
}

function number(text) {
  return text === "" ? 0 : /^\d{1,6}$/.test(text) ? Number(text) : -1;
}
