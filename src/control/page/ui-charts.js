// Charts of the dashboard: lines over the last five minutes, as SVG. Colours and widths are the
// style's. A chart is an image with a sentence for who cannot see it; with the focus on one, the
// arrow keys go from second to second in all of them.

const NS = "http://www.w3.org/2000/svg";
/** Rows that a chart shows: five minutes. */
const SPAN = 300;
/** Height of the picture, in its own units; the style stretches it. */
const HEIGHT = 100;
/** Least time of a logarithmic scale, in microseconds. */
const LEAST_US = 10;

const svg = (tag, attributes = {}, className = "") => {
  const made = document.createElementNS(NS, tag);
  for (const name in attributes) made.setAttribute(name, attributes[name]);
  if (className) made.setAttribute("class", className);
  return made;
};

const html = (tag, className, text = "") => {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
};

/** A number with three digits at most: 0.5, 12, 3.4k. */
export const short = (n) => {
  if (n === null || n === undefined) return "–";
  if (Math.abs(n) < 10 && !Number.isInteger(n)) return n.toFixed(1);
  return new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(n);
};

/** A time of microseconds. */
export function time(us) {
  if (us === null || us === undefined) return "–";
  if (us < 1_000) return `${us} µs`;
  if (us < 1_000_000) return `${(us / 1_000).toPrecision(us < 10_000 ? 2 : 3).replace(/\.0+$/, "")} ms`;
  return `${(us / 1_000_000).toPrecision(3).replace(/\.?0+$/, "")} s`;
}

/** The next of 1, 2, 5, 10, 20 … that is not below `n`. */
function round(n) {
  const power = 10 ** Math.floor(Math.log10(n));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= n);
}

/** All charts, for the cursor that they share: the number of the row, or null. */
const charts = new Set();
let cursor = null;

export class Chart {
  #figure;
  #plot;
  #paths = [];
  #line;
  #top;
  #told;
  #options;
  #rows = [];
  #values = [];

  /**
   * @param parent where the chart is appended
   * @param options title; series: [{ name, className, isArea }]; format of values; top: the end of
   * the scale, if it is fixed; isLogarithmic: of microseconds
   */
  constructor(parent, options) {
    this.#options = options;
    this.#figure = html("figure", `chart ${options.className ?? ""}`);
    this.#plot = svg("svg", { viewBox: `0 0 ${SPAN} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", tabindex: "0" });
    for (const y of [0.25, 0.5, 0.75]) {
      this.#plot.append(svg("path", { d: `M0 ${HEIGHT * y}H${SPAN}` }, "grid"));
    }
    for (const { className, isArea } of options.series) {
      const path = svg("path", {}, `${isArea ? "area" : "curve"} ${className}`);
      this.#paths.push(path);
      this.#plot.append(path);
    }
    this.#line = svg("path", {}, "cursor");
    this.#plot.append(this.#line);
    this.#top = html("span", "top");
    this.#told = html("span", "told");
    const caption = html("figcaption", "");
    caption.append(html("b", "", options.title), this.#told);
    const frame = html("div", "frame");
    frame.append(this.#plot, this.#top);
    this.#figure.append(caption, frame);
    this.#listen();
    parent.append(this.#figure);
    charts.add(this);
  }

  remove() {
    this.#figure.remove();
    charts.delete(this);
  }

  /** Shows rows; `valuesOf` gives the values of a row, one for each series, null for none. */
  draw(rows, valuesOf) {
    this.#rows = rows;
    this.#values = rows.map(valuesOf);
    const newest = rows.at(-1)?.n ?? 0;
    const most = Math.max(0, ...this.#values.flat().map((value) => value ?? 0));
    const top = this.#scaleEnd(most);
    const x = (n) => SPAN - 0.5 - (newest - n);
    this.#paths.forEach((path, at) => path.setAttribute("d", this.#trace(at, x, top)));
    this.#top.textContent = this.#options.isLogarithmic ? time(top) : this.#options.format(top);
    this.tell();
  }

  #scaleEnd(most) {
    const { top, isLogarithmic } = this.#options;
    if (top) return top;
    if (isLogarithmic) return Math.max(10_000, 10 ** Math.ceil(Math.log10(Math.max(most, 1))));
    return round(Math.max(most, this.#options.least ?? 10));
  }

  #trace(at, x, top) {
    const { isArea } = this.#options.series[at];
    let path = "";
    let start = null;
    const y = (value) => {
      const part = this.#options.isLogarithmic
        ? Math.log10(Math.max(value, LEAST_US) / LEAST_US) / Math.log10(top / LEAST_US)
        : value / top;
      return (HEIGHT * (1 - Math.min(part, 1))).toFixed(1);
    };
    const end = (last) => (isArea && start !== null ? `V${HEIGHT}H${start}Z` : last);
    this.#rows.forEach((row, n) => {
      const value = this.#values[n][at];
      if (value === null || value === undefined) {
        path += end("");
        start = null;
        return;
      }
      // A row alone is still to be seen.
      path += start === null ? `M${x(row.n)} ${isArea ? `${HEIGHT}V` : ""}${y(value)}h.01` : `L${x(row.n)} ${y(value)}`;
      start ??= x(row.n);
    });
    return path + end("");
  }

  /** Says the values at the cursor, or the newest ones. */
  tell() {
    const { title, series, format } = this.#options;
    const found = cursor === null ? -1 : this.#rows.findIndex((row) => row.n === cursor);
    const at = found < 0 ? this.#rows.length - 1 : found;
    const row = this.#rows[at];
    if (!row) return;
    const newest = this.#rows.at(-1);
    const values = series.map(({ name }, n) => `${name} ${format(this.#values[at][n])}`).join(" · ");
    const ago = Math.round((newest.unix_ms - row.unix_ms) / 1_000);
    this.#told.textContent = found < 0 || ago === 0 ? values : `${ago} s ago: ${values}`;
    const most = series.map(({ name }, n) => `${name} ${format(Math.max(0, ...this.#values.map((all) => all[n] ?? 0)))}`);
    this.#plot.setAttribute("aria-label", `${title}. ${this.#told.textContent}. At most, in five minutes: ${most.join(", ")}`);
    this.#line.setAttribute("d", found < 0 ? "" : `M${SPAN - 0.5 - (newest.n - row.n)} 0V${HEIGHT}`);
  }

  #listen() {
    const move = (number) => {
      cursor = number;
      charts.forEach((chart) => chart.tell());
    };
    const first = () => this.#rows[0]?.n ?? 0;
    const last = () => this.#rows.at(-1)?.n ?? 0;
    this.#plot.addEventListener("pointermove", ({ clientX }) => {
      const { left, width } = this.#plot.getBoundingClientRect();
      const number = last() - SPAN + 1 + Math.floor(((clientX - left) / width) * SPAN);
      move(number >= first() ? number : null);
    });
    this.#plot.addEventListener("pointerleave", () => move(null));
    this.#plot.addEventListener("blur", () => move(null));
    this.#plot.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -SPAN, End: SPAN };
      if (event.key === "Escape") move(null);
      if (!(event.key in steps)) return;
      event.preventDefault();
      move(Math.min(Math.max((cursor ?? last()) + steps[event.key], first()), last()));
    });
  }
}
