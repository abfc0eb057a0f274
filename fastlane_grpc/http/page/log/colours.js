// Colours of the palette, and their correction where they could not be read on the page's background.

import { TRUE_COLOUR } from "./style.js";

const STEPS = [0, 95, 135, 175, 215, 255];
// A little more than WCAG asks for: lines of stderr and chosen ones have a tinted ground.
const MIN_CONTRAST = 5;

/** Return a colour from 16 on as [red, green, blue]. The first sixteen are the style sheet's. */
export function rgbOf(colour) {
  if (colour >= TRUE_COLOUR) return [colour >> 16 & 255, colour >> 8 & 255, colour & 255];
  if (colour >= 232) return Array(3).fill(8 + (colour - 232) * 10);
  const index = colour - 16;
  return [STEPS[Math.floor(index / 36)], STEPS[Math.floor(index / 6) % 6], STEPS[index % 6]];
}

/** Return the colour, as near as it may be so that text of it can be read on this background. */
export function readable(rgb, background) {
  if (contrast(rgb, background) >= MIN_CONTRAST) return rgb;
  const target = luminance(background) > 0.18 ? 0 : 255;
  for (let part = 0.1; part < 1; part += 0.1) {
    const mixed = rgb.map((value) => Math.round(value + (target - value) * part));
    if (contrast(mixed, background) >= MIN_CONTRAST) return mixed;
  }
  return [target, target, target];
}

/** Return the contrast of two colours by WCAG, 1 to 21. */
export function contrast(one, other) {
  const [darker, lighter] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (lighter + 0.05) / (darker + 0.05);
}

function luminance(rgb) {
  const [red, green, blue] = rgb.map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}
