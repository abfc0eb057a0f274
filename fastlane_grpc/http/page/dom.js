// Elements, made of tags, attributes and text. Text is only ever a text node: nothing from outside is parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Return a new element. Children: elements, texts, or null for none. Attributes with a function are listeners. */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name === "href" && !isOwnAddress(String(value))) throw new Error("a link to another site");
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Whether an address is a path of this site, or a place on the page. */
function isOwnAddress(value) {
  return value.startsWith("#") || value.startsWith("/") && !value.startsWith("//") && !value.startsWith("/\\");
}

/** Replace all that is in an element. */
export function show(element, ...children) {
  element.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined));
}

/** Replace all that is in an element. The control that has the focus keeps it, if it is there again. */
export function showAnew(element, ...children) {
  const { activeElement } = document;
  const isWithin = activeElement !== element && element.contains(activeElement);
  show(element, ...children);
  if (isWithin) [...element.querySelectorAll("button, a[href]")].find((each) => isSame(each, activeElement))?.focus();
}

function isSame(one, other) {
  return one.tagName === other.tagName && one.dataset.action === other.dataset.action && one.getAttribute("href") === other.getAttribute("href");
}

/** Return an icon: lines of 1.5 pixels in a square of 16. */
export function icon(name) {
  return svg("svg", { class: "icon", viewBox: "0 0 16 16", "aria-hidden": "true", focusable: "false" },
    svg("path", { d: ICONS[name] }));
}

const ICONS = {
  up: "M3.5 10 8 5.5l4.5 4.5",
  down: "M3.5 6 8 10.5 12.5 6",
  end: "M8 2.5v8M4 7l4 4 4-4M3 13.5h10",
  wrap: "M2.5 4h11M2.5 8h9a2 2 0 0 1 0 4H8m1.8-1.8L8 12l1.8 1.8M2.5 12h3",
  clock: "M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2m0 3v3.2l2.2 1.4",
  download: "M8 2.5v7.5M4.8 7 8 10.2 11.2 7M3 13.5h10",
  copy: "M6 5.5h7.5v8H6zM10.5 5.5v-3H2.5v8H6",
  search: "M7 2.5a4.5 4.5 0 1 0 0 9 4.5 4.5 0 0 0 0-9M10.3 10.3l3.2 3.2",
  stop: "M4 4h8v8H4z",
  retry: "M12.8 6.5A5 5 0 1 0 13 9M13 3v3.5H9.5",
  pause: "M5.5 3.5v9M10.5 3.5v9",
  play: "M5 3.5 12 8l-7 4.5z",
};
