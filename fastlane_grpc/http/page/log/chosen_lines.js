// Lines in the address of a page: #L120, #L120-130.

/** Return {first, last} of a fragment; null if it names no lines. */
export function chosenLines(hash) {
  const match = /^#L(\d{1,15})(?:-L?(\d{1,15}))?$/.exec(hash);
  if (!match) return null;
  const one = Math.max(1, Number(match[1])), other = Math.max(1, Number(match[2] ?? match[1]));
  return { first: Math.min(one, other), last: Math.max(one, other) };
}

export function hashOf({ first, last }) {
  return first === last ? `#L${first}` : `#L${first}-${last}`;
}
