// Rows as elements. All output is text nodes.

import { el } from "../dom.js";
import { bytes, clockTime, dateTime, plain, stopwatch, words } from "../format.js";
import { readable, rgbOf } from "./colours.js";
import { STDERR, SYSTEM } from "./output.js";
import { BOLD, DIM, INVERSE, ITALIC, NO_COLOUR, STRIKE, UNDERLINE } from "./style.js";

const CLASSES = [[BOLD, "b"], [DIM, "d"], [ITALIC, "i"], [UNDERLINE, "u"], [STRIKE, "s"]];
const SOURCES = { SOURCE_STDOUT: "stdout", SOURCE_STDERR: "stderr", SOURCE_SYSTEM: "system" };
// A line with more styles than that is shown plain from there on.
const MAX_RUNS = 500;
// The first sixteen colours where they have a background of their own, and so are not the style sheet's.
const SIXTEEN = [
  [0, 0, 0], [190, 38, 38], [30, 130, 60], [150, 105, 0], [36, 87, 214], [150, 50, 150], [0, 125, 140], [210, 210, 210],
  [95, 99, 106], [240, 90, 90], [80, 190, 110], [225, 180, 60], [100, 150, 255], [215, 120, 215], [70, 195, 210], [255, 255, 255],
];

const GAPS = {
  CAUSE_SIZE_LIMIT: "the log exceeded its size limit",
  CAUSE_PRUNED: "the log was pruned",
  CAUSE_ENGINE: "lost before they were stored",
  CAUSE_STORE: "the store was damaged or full",
};

/** How rows are painted: the colours of the page, and what time stamps show. */
export class Painter {
  /** "off", "relative" or "absolute" */
  stamps = "off";
  startTime = NaN;

  /** Take the colours of the page from an element of the log. */
  takeColours(element) {
    const style = getComputedStyle(element);
    this.ink = numbersOf(style.color);
    this.ground = numbersOf(style.backgroundColor);
  }

  row(row) {
    return row.kind === "gap" ? this.#gap(row) : this.#line(row);
  }

  stamp(row) {
    if (this.stamps === "off" || !Number.isFinite(row.time)) return "";
    return this.stamps === "absolute" ? clockTime(row.time) : stopwatch(row.time - this.startTime);
  }

  #line(row) {
    const source = SOURCES[row.source] ?? "";
    const text = el("span", { class: "text" }, this.#runs(row.runs));
    if (row.cut) text.append(el("span", { class: "cut" }, ` … and ${plain(row.cut)} more characters`));
    const line = el("div", { class: "line", "data-source": source });
    if (row.number !== null) {
      line.append(el("a", { class: "number", href: `#L${row.number}`, "data-number": row.number, "aria-label": `Line ${row.number}`, tabindex: "-1" }));
    } else line.append(el("span", { class: "number" }));
    line.append(el("span", { class: "stamp", "data-stamp": this.stamp(row), title: dateTime(row.time) }));
    if (row.source === STDERR || row.source === SYSTEM) {
      line.append(el("span", { class: "source", title: row.source === STDERR ? "standard error" : "from fastlane" },
        el("span", { class: "unseen" }, row.source === STDERR ? "stderr: " : "fastlane: ")));
    }
    line.append(text);
    return line;
  }

  #gap({ source, missing, cause }) {
    const size = missing === null ? "An unknown part" : bytes(missing);
    const why = GAPS[cause] ?? words(cause, "CAUSE_").toLowerCase();
    return el("div", { class: "gap", role: "note" }, `${size} of ${SOURCES[source] ?? "output"} ${missing === null || missing === 1 ? "is" : "are"} missing here${why ? `: ${why}` : ""}`);
  }

  #runs(runs) {
    const nodes = runs.slice(0, MAX_RUNS).map((run) => this.#run(run));
    if (runs.length > MAX_RUNS) nodes.push(document.createTextNode(runs.slice(MAX_RUNS).map((run) => run.text).join("")));
    return nodes;
  }

  #run({ text, style }) {
    let { foreground, background } = style;
    const names = CLASSES.filter(([flag]) => style.flags & flag).map(([, name]) => name);
    let ink = null, ground = null;
    if (style.flags & INVERSE) {
      ground = foreground === NO_COLOUR ? this.ink : colourOf(foreground);
      ink = readable(background === NO_COLOUR ? this.ground : colourOf(background), ground);
    } else if (background !== NO_COLOUR) {
      ground = colourOf(background);
      ink = readable(foreground === NO_COLOUR ? this.ink : colourOf(foreground), ground);
    } else if (foreground >= 16) ink = readable(rgbOf(foreground), this.ground);
    else if (foreground !== NO_COLOUR) names.push(`c${foreground}`);
    if (!names.length && !ink) return document.createTextNode(text);
    const span = el("span", names.length ? { class: names.join(" ") } : {}, text);
    if (ink) span.style.color = `rgb(${ink.join(" ")})`;
    if (ground) span.style.backgroundColor = `rgb(${ground.join(" ")})`;
    return span;
  }
}

function colourOf(colour) {
  return colour < 16 ? SIXTEEN[colour] : rgbOf(colour);
}

function numbersOf(colour) {
  return (colour.match(/\d+(\.\d+)?/g) ?? [0, 0, 0]).slice(0, 3).map(Number);
}
