// The search field of a log: matches are marked without touching the lines, and found in the whole log.

import { el, icon, show } from "../dom.js";
import { plain } from "../format.js";
import { firstLine, lastLine, matchesIn } from "./search.js";

const DELAY_MS = 150;

export class LogSearch {
  #matches = [];
  #current = -1;
  // The match from which the search goes on.
  #anchor = null;
  #looking = null;
  #timer = 0;

  constructor(view) {
    this.view = view;
    this.input = el("input", {
      type: "search", name: "search", placeholder: "Search", autocomplete: "off", spellcheck: "false",
      "aria-label": "Search the log", title: "Search (/), next (n), previous (N)", enterkeyhint: "search",
      input: () => this.#changed(), keydown: (event) => this.#key(event),
    });
    this.state = el("output", { class: "found", "aria-live": "polite" });
    const step = (name, label, by) => el("button", { type: "button", "data-action": name, "aria-label": label, title: label, click: () => this.step(by) }, icon(by < 0 ? "up" : "down"));
    this.element = el("form", { class: "search", role: "search", submit: (event) => event.preventDefault() },
      el("span", { class: "field" }, icon("search"), this.input, this.state),
      step("previous", "Previous match", -1), step("next", "Next match", 1));
  }

  focus() {
    this.input.focus();
    this.input.select();
  }

  /** Mark the matches anew: other lines are shown now. */
  rowsChanged() {
    if (!this.input.value) return;
    const current = this.#matches[this.#current];
    this.#matches = matchesIn(this.view.rows, this.input.value);
    this.#current = current ? this.#matches.findIndex((match) => match.row === current.row && match.at === current.at) : -1;
    this.#show();
  }

  /** Go to the next match, or with -1 to the previous one: in the lines shown, then in the rest of the log. */
  async step(by) {
    const needle = this.input.value;
    if (!needle) {
      this.focus();
      return;
    }
    this.#cancel();
    this.#matches = matchesIn(this.view.rows, needle);
    const next = this.#nextOf(by);
    if (next >= 0 && next < this.#matches.length) {
      this.#goTo(next);
      return;
    }
    await this.#searchRest(needle, by);
  }

  #nextOf(by) {
    if (this.#anchor) {
      const rows = this.view.rows;
      const place = rows.indexOf(this.#anchor.row);
      if (place >= 0) {
        const isAfter = (match) => {
          const difference = rows.indexOf(match.row) - place;
          return difference > 0 || difference === 0 && match.at > this.#anchor.at;
        };
        const isBefore = (match) => {
          const difference = rows.indexOf(match.row) - place;
          return difference < 0 || difference === 0 && match.at < this.#anchor.at;
        };
        return by > 0 ? this.#matches.findIndex(isAfter) : this.#matches.findLastIndex(isBefore);
      }
    }
    if (!this.#matches.length) return -1;
    // The first search begins with what is in view.
    const top = this.view.scroller.getBoundingClientRect().top;
    const isInView = ({ row }) => this.view.elementOf(row)?.getBoundingClientRect().bottom > top;
    const first = this.#matches.findIndex(isInView);
    return by > 0 ? (first < 0 ? 0 : first) : first < 0 ? this.#matches.length - 1 : first - 1 < 0 ? -1 : first - 1;
  }

  async #searchRest(needle, by) {
    const { view } = this;
    const { first, next, isEnd } = view.extent;
    const last = view.linesInAll;
    const looking = new AbortController();
    this.#looking = looking;
    const signal = AbortSignal.any([looking.signal, view.signal]);
    const onProgress = (line) => {
      show(this.state, `… ${plain(line)}`);
    };
    const end = last === null ? Number.MAX_SAFE_INTEGER : last + 1;
    try {
      // The rest in this direction, then, from the other end of the log, up to what was passed.
      const spans = by > 0 ? [[isEnd ? end : next, end], [1, next]] : [[1, first], [first, end]];
      for (const [index, [from, to]] of spans.entries()) {
        if (from >= to) continue;
        const line = await (by > 0 ? firstLine : lastLine)(view.source, needle, from, to, signal, onProgress);
        if (line === null) continue;
        if (index) view.tell(by > 0 ? "The search went on from the top" : "The search went on from the end");
        await view.goTo(line);
        this.#anchor = null;
        this.#matches = matchesIn(view.rows, needle);
        const inLine = (match) => match.row.number === line;
        const found = by > 0 ? this.#matches.findIndex(inLine) : this.#matches.findLastIndex(inLine);
        if (found >= 0) this.#goTo(found);
        else this.#show();
        return;
      }
      if (this.#matches.length) this.#goTo(by > 0 ? 0 : this.#matches.length - 1);
      else {
        this.#current = -1;
        this.#show();
      }
    } catch (error) {
      if (!signal.aborted) view.tell(`The search failed. ${error.message}`);
    } finally {
      if (this.#looking === looking) this.#looking = null;
    }
  }

  #goTo(index) {
    this.#current = index;
    this.#anchor = this.#matches[index];
    this.view.reveal(this.#anchor.row);
    this.#show();
  }

  #changed() {
    clearTimeout(this.#timer);
    this.#cancel();
    this.#timer = setTimeout(() => {
      this.#anchor = null;
      this.#current = -1;
      this.#matches = matchesIn(this.view.rows, this.input.value);
      // While one types, the lines shown; Enter searches the rest.
      const begin = this.#nextOf(1);
      if (begin >= 0) this.#goTo(begin);
      else if (this.#matches.length) this.#goTo(this.#matches.length - 1);
      else this.#show(false);
    }, DELAY_MS);
  }

  #key(event) {
    if (event.key === "Enter") {
      event.preventDefault();
      clearTimeout(this.#timer);
      void this.step(event.shiftKey ? -1 : 1);
    } else if (event.key === "Escape") {
      event.preventDefault();
      if (this.#looking) this.#cancel();
      else {
        this.input.value = "";
        this.#changed();
        this.view.scroller.focus();
      }
    }
  }

  #cancel() {
    this.#looking?.abort();
    this.#looking = null;
    this.#show();
  }

  #show(isSearched = true) {
    const needle = this.input.value;
    if (!needle) {
      this.#matches = [];
      show(this.state);
    } else if (!this.#matches.length) show(this.state, isSearched ? "none" : "Enter ↵");
    else show(this.state, this.#current < 0 ? plain(this.#matches.length) : `${plain(this.#current + 1)} of ${plain(this.#matches.length)}`);
    this.#highlight();
  }

  #highlight() {
    if (!globalThis.CSS?.highlights) return;
    CSS.highlights.delete("found");
    CSS.highlights.delete("current");
    if (!this.#matches.length) return;
    const length = this.input.value.length;
    const ranges = this.#matches.map(({ row, at }) => this.#range(row, at, length));
    CSS.highlights.set("found", new Highlight(...ranges.filter((range, index) => range && index !== this.#current)));
    if (ranges[this.#current]) CSS.highlights.set("current", new Highlight(ranges[this.#current]));
  }

  /** Return the range of a part of a row's text, which may be in several text nodes. */
  #range(row, at, length) {
    const text = this.view.elementOf(row)?.querySelector(".text");
    if (!text) return null;
    const range = new Range();
    const walker = document.createTreeWalker(text, NodeFilter.SHOW_TEXT);
    let passed = 0, isBegun = false;
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      const end = passed + node.data.length;
      if (!isBegun && at < end) {
        range.setStart(node, at - passed);
        isBegun = true;
      }
      if (isBegun && at + length <= end) {
        range.setEnd(node, at + length - passed);
        return range;
      }
      passed = end;
    }
    return null;
  }
}
