// The rows of a log that are shown: a bounded part of it, which moves.

// What a row weighs beside its characters.
const ROW_WEIGHT = 64;

/** A list of rows, bounded in number and weight. What is added at one end pushes rows out at the other. */
export class LineWindow {
  rows = [];
  #weight = 0;

  constructor(maxRows, maxWeight) {
    this.maxRows = maxRows;
    this.maxWeight = maxWeight;
  }

  /** The number of the first numbered line; null if there is none. */
  get first() {
    return this.rows.find((row) => row.number !== null)?.number ?? null;
  }

  /** The number of the last numbered line; null if there is none. */
  get last() {
    return this.rows.findLast((row) => row.number !== null)?.number ?? null;
  }

  /** Return how many of these rows can be added at the end without any falling out. */
  roomFor(rows) {
    let weight = this.#weight;
    const most = Math.min(rows.length, this.maxRows - this.rows.length);
    for (let count = 0; count < most; count++) {
      weight += weightOf(rows[count]);
      if (weight > this.maxWeight) return count;
    }
    return Math.max(0, most);
  }

  /** Add rows at the end; return those that fell out at the start. */
  append(rows) {
    // Of more rows than there is room for, only the last ones count.
    for (const row of rows) {
      this.rows.push(row);
      this.#weight += weightOf(row);
    }
    let excess = 0;
    for (let count = this.rows.length; this.#isOver(count - excess); excess++) this.#weight -= weightOf(this.rows[excess]);
    return this.rows.splice(0, excess);
  }

  /** Add rows at the start; return those that fell out at the end. */
  prepend(rows) {
    this.rows = [...rows, ...this.rows];
    for (const row of rows) this.#weight += weightOf(row);
    let left = this.rows.length;
    while (this.#isOver(left)) this.#weight -= weightOf(this.rows[--left]);
    return this.rows.splice(left);
  }

  clear() {
    this.#weight = 0;
    return this.rows.splice(0);
  }

  /** Return the row with this number, or undefined. */
  row(number) {
    return this.rows.find((row) => row.number === number);
  }

  #isOver(count) {
    return count > this.maxRows || this.#weight > this.maxWeight && count > 1;
  }
}

function weightOf(row) {
  let weight = ROW_WEIGHT;
  for (const run of row.runs ?? []) weight += run.text.length;
  return weight;
}
