"use strict";
// Draws the curves of the page's data, and says their values where the pointer is.
(() => {
  const HEIGHT = 300, TOP = 12, RIGHT = 28, BOTTOM = 44, LEFT = 74;
  const MOST_ROWS = 12; // of the tooltip: the curves nearest to the pointer
  const COLORS = 12;
  const FEW = 3; // curves beside whose smoothed form the measured one is shown too

  const svgElement = (name, attributes = {}, text = null) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== null) made.textContent = text;
    return made;
  };

  const htmlElement = (name, className = "", text = "") => {
    const made = document.createElement(name);
    made.className = className;
    made.textContent = text;
    return made;
  };

  // Five digits, an exponent for what is very small or large, thousands apart.
  const format = (value) => {
    if (value === null) return "not finite";
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size < 1.0001e-3 || size >= 1e9) {
      return value.toExponential(3).replace(/\.?0+e/, "e");
    }
    if (Number.isInteger(value)) return value.toLocaleString("en");
    return size >= 1000
      ? value.toLocaleString("en", { maximumFractionDigits: 0 })
      : String(Number(value.toPrecision(5)));
  };

  // Round numbers between two others, about `count` of them.
  const linearTicks = (low, high, count) => {
    const raw = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((n) => n * power).find((s) => s >= raw * 0.999);
    const ticks = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
      ticks.push(Number((i * step).toPrecision(12)));
    }
    return ticks;
  };

  // Powers of ten, with 2 and 5 times them where few decades are to be seen.
  const logTicks = (low, high, count) => {
    const decades = Math.log10(high / low);
    if (decades < 0.7) return linearTicks(low, high, count).filter((tick) => tick > 0);
    const factors = decades > 3 ? [1] : [1, 2, 5];
    const every = Math.max(1, Math.ceil(decades / 10));
    const ticks = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
      if (e % every) continue;
      for (const factor of factors) ticks.push(Number((factor * 10 ** e).toPrecision(6)));
    }
    return ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
  };

  // From a value to a place between `from` and `to`, straight or by its logarithm.
  const makeScale = (numbers, log, from, to) => {
    let low = Infinity, high = -Infinity;
    for (const number of numbers) {
      if (number < low) low = number;
      if (number > high) high = number;
    }
    if (low > high) [low, high] = log ? [0.1, 1] : [0, 1];
    const along = log ? Math.log10 : (value) => value;
    let [start, end] = [along(low), along(high)];
    if (start === end) [start, end] = [start - (log ? 0.5 : Math.abs(start) * 0.1 || 1),
                                       end + (log ? 0.5 : Math.abs(end) * 0.1 || 1)];
    const back = log ? (value) => 10 ** value : (value) => value;
    const place = (value) => from + ((along(value) - start) / (end - start)) * (to - from);
    return { place, low: back(start), high: back(end),
             ticks: (count) => (log ? logTicks : linearTicks)(back(start), back(end), count) };
  };

  // The index of the known value whose place is nearest to `at`, or -1.
  const nearest = (places, at) => {
    let best = -1, distance = Infinity;
    places.forEach((place, index) => {
      const apart = place === null ? Infinity : Math.abs(place - at);
      if (apart < distance) [best, distance] = [index, apart];
    });
    return best;
  };

  class Chart {
    constructor(data, parent) {
      this.data = data;
      this.hidden = new Set();
      this.smooth = data.series.some((series) => series.smooth !== null);
      this.log = data.yLog;
      this.at = null; // the place of the pointer or, by keys, of the cursor
      this.figure = htmlElement("figure", "chart");
      const bar = htmlElement("div", "bar");
      bar.append(htmlElement("h3", "", data.title));
      if (this.smooth) bar.append(this.control("smoothed", "smooth"));
      bar.append(this.control("logarithmic", "log"));
      this.svg = svgElement("svg", { height: HEIGHT, tabindex: 0, role: "img",
                                     "aria-label": `${data.title}: ${data.yLabel}` });
      this.tooltip = htmlElement("div", "tooltip");
      this.tooltip.setAttribute("role", "status");
      this.tooltip.hidden = true;
      this.figure.append(bar, this.legend(), this.svg, this.tooltip);
      parent.append(this.figure);
      this.listen();
      new ResizeObserver(() => this.draw()).observe(this.svg);
    }

    // Takes newer values of the same curves; a reader's choices and cursor stay.
    update(data) {
      const pointed = !this.tooltip.hidden;
      this.data = data;
      this.draw();
      if (pointed && this.at !== null) this.point(this.at, HEIGHT / 2);
    }

    control(text, name) {
      const label = htmlElement("label", "switch");
      const box = htmlElement("input");
      box.type = "checkbox";
      box.name = name;
      box.checked = this[name];
      box.addEventListener("change", () => {
        this[name] = box.checked;
        this.draw();
      });
      label.append(box, ` ${text}`);
      return label;
    }

    legend() {
      const legend = htmlElement("div", "legend");
      this.data.series.forEach((series, index) => {
        const button = htmlElement("button");
        button.type = "button";
        button.title = "hide or show this curve";
        button.setAttribute("aria-pressed", "true");
        button.append(htmlElement("i", `swatch c${series.color % COLORS}`), series.name);
        button.addEventListener("click", () => {
          if (!this.hidden.delete(index)) this.hidden.add(index);
          button.setAttribute("aria-pressed", String(!this.hidden.has(index)));
          this.draw();
        });
        legend.append(button);
      });
      return legend;
    }

    listen() {
      const show = (event) => {
        const box = this.svg.getBoundingClientRect();
        this.point(event.clientX - box.left, event.clientY - box.top);
      };
      const leave = () => {
        this.tooltip.hidden = true;
        this.cursor?.replaceChildren();
      };
      this.svg.addEventListener("pointermove", show);
      this.svg.addEventListener("pointerdown", show);
      this.svg.addEventListener("pointerleave", leave);
      this.svg.addEventListener("blur", leave);
      this.svg.addEventListener("keydown", (event) => {
        const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (step === undefined) return;
        event.preventDefault();
        const places = [...new Set(this.shown.flatMap((one) => one.px))]
          .filter((place) => place !== null).sort((a, b) => a - b);
        const now = this.at === null ? -1 : nearest(places, this.at);
        const next = places[Math.min(Math.max(now + step, 0), places.length - 1)];
        if (next !== undefined) this.point(next, HEIGHT / 2);
      });
    }

    draw() {
      const width = this.svg.clientWidth;
      if (!width) return;
      this.width = width;
      this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
      const visible = this.data.series
        .map((series, index) => ({ series, index }))
        .filter(({ index }) => !this.hidden.has(index));
      const known = (value, log) => value !== null && (!log || value > 0);
      this.faint = this.smooth && visible.length <= FEW;
      const xs = [], ys = [];
      for (const { series } of visible) {
        const seen = [this.smooth && series.smooth ? series.smooth : series.y];
        if (this.faint) seen.push(series.y);
        series.x.forEach((x, i) => {
          for (const values of seen) {
            if (!known(x, this.data.xLog) || !known(values[i], this.log)) continue;
            xs.push(x);
            ys.push(values[i]);
          }
        });
      }
      this.x = makeScale(xs, this.data.xLog, LEFT, width - RIGHT);
      this.y = makeScale(ys, this.log, HEIGHT - BOTTOM, TOP);
      this.shown = visible.map(({ series }) => {
        const values = this.smooth && series.smooth ? series.smooth : series.y;
        const px = [], py = [], raw = [];
        series.x.forEach((x, i) => {
          const both = known(x, this.data.xLog) && known(values[i], this.log);
          px.push(both ? this.x.place(x) : null);
          py.push(both ? this.y.place(values[i]) : null);
          const alone = both && known(series.y[i], this.log);
          raw.push(alone ? this.y.place(series.y[i]) : null);
        });
        return { series, px, py, raw, values };
      });
      this.svg.replaceChildren(this.axes(width), ...this.shown.map((one) => this.curve(one)));
      this.cursor = svgElement("g");
      this.svg.append(this.cursor);
      this.tooltip.hidden = true;
    }

    axes(width) {
      const group = svgElement("g");
      for (const tick of this.y.ticks(6)) {
        const at = this.y.place(tick);
        group.append(svgElement("line", { class: "grid", x1: LEFT, x2: width - RIGHT,
                                          y1: at, y2: at }));
        group.append(svgElement("text", { x: LEFT - 8, y: at + 4, "text-anchor": "end" },
                                format(tick)));
      }
      for (const tick of this.x.ticks(Math.max(2, Math.min(9, width / 90)))) {
        const at = this.x.place(tick);
        group.append(svgElement("line", { class: "grid", x1: at, x2: at,
                                          y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM + 5 }));
        group.append(svgElement("text", { x: at, y: HEIGHT - BOTTOM + 18,
                                          "text-anchor": "middle" }, format(tick)));
      }
      const [middle, side] = [(LEFT + width - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2];
      group.append(svgElement("text", { x: middle, y: HEIGHT - 6, class: "x-label",
                                        "text-anchor": "middle" }, this.data.xLabel));
      group.append(svgElement("text", { transform: `translate(13 ${side}) rotate(-90)`,
                                        class: "y-label", "text-anchor": "middle" },
                              this.data.yLabel));
      return group;
    }

    curve({ series, px, py, raw }) {
      const dashed = series.color >= COLORS ? " dashed" : "";
      const group = svgElement("g", { class: `c${series.color % COLORS}` });
      if (this.faint && series.smooth) {
        group.append(svgElement("path", { class: "curve faint", d: this.path(px, raw) }));
      }
      if (series.line) {
        group.append(svgElement("path", { class: `curve${dashed}`, d: this.path(px, py) }));
      }
      px.forEach((x, i) => {
        const alone = x !== null && (px[i - 1] ?? null) === null && (px[i + 1] ?? null) === null;
        if (x !== null && (series.points || alone)) {
          group.append(svgElement("circle", { class: "dot", cx: x, cy: py[i], r: 3 }));
        }
      });
      if (series.best !== null) this.markBest(group, series.best);
      return group;
    }

    path(px, py) {
      let text = "", pen = "M";
      px.forEach((x, i) => {
        if (x === null || py[i] === null) {
          pen = "M";
          return;
        }
        text += `${pen}${x.toFixed(1)} ${py[i].toFixed(1)}`;
        pen = "L";
      });
      return text;
    }

    markBest(group, [step, value]) {
      if (this.log && value <= 0) return;
      const [x, y] = [this.x.place(step), this.y.place(value)];
      const late = x > this.width * 0.7;
      group.append(svgElement("circle", { class: "best", cx: x, cy: y, r: 7 }));
      group.append(svgElement("text", { class: "best-label", x: x + (late ? -10 : 10),
                                        y: y - 10, "text-anchor": late ? "end" : "start" },
                              `best ${format(value)}`));
    }

    // Shows the values at the logged step that is nearest to a place in the picture.
    point(x, y) {
      const found = this.shown
        .map((one) => ({ ...one, i: nearest(one.px, x) }))
        .filter((one) => one.i >= 0);
      if (!found.length) return;
      const key = found.reduce((a, b) =>
        Math.abs(b.px[b.i] - x) < Math.abs(a.px[a.i] - x) ? b : a);
      this.at = key.px[key.i];
      this.cursor.replaceChildren(svgElement("line", {
        class: "cursor", x1: this.at, x2: this.at, y1: TOP, y2: HEIGHT - BOTTOM }));
      const near = found
        .map((one) => ({ ...one, far: Math.abs(one.py[one.i] - y) }))
        .sort((a, b) => a.far - b.far).slice(0, MOST_ROWS)
        .sort((a, b) => a.py[a.i] - b.py[b.i]);
      const where = key.series.x[key.i];
      this.tooltip.replaceChildren(htmlElement("b", "", `${this.data.xLabel}: ${format(where)}`));
      for (const one of near) this.tooltip.append(this.row(one, where));
      if (found.length > near.length) {
        this.tooltip.append(htmlElement("div", "remark", `and ${found.length - near.length} more`));
      }
      for (const { series, px, py, i } of near) {
        this.cursor.append(svgElement("circle", {
          class: `dot c${series.color % COLORS}`, cx: px[i], cy: py[i], r: 4 }));
      }
      this.tooltip.append(htmlElement("div", "remark", this.data.yLabel));
      this.moveTooltip(y);
    }

    row({ series, values, i }, where) {
      const row = htmlElement("div");
      const elsewhere = series.x[i] === where ? "" : ` (at ${format(series.x[i])})`;
      const raw = values === series.y ? "" : `, unsmoothed ${format(series.y[i])}`;
      row.append(htmlElement("i", `swatch c${series.color % COLORS}`),
                 `${series.name}: ${format(values[i])}${raw}${elsewhere}`);
      return row;
    }

    moveTooltip(y) {
      this.tooltip.hidden = false;
      const [frame, box] = [this.figure, this.svg].map((one) => one.getBoundingClientRect());
      const left = box.left - frame.left + this.at;
      const { offsetWidth: width, offsetHeight: height } = this.tooltip;
      const fits = left + 14 + width <= this.figure.clientWidth;
      const beside = fits ? left + 14 : Math.max(4, left - 14 - width);
      this.tooltip.style.left = `${beside}px`;
      this.tooltip.style.top = `${box.top - frame.top + Math.max(0, y - height / 2)}px`;
    }
  }

  const root = document.documentElement;
  document.getElementById("theme").addEventListener("click", () => {
    const now = root.style.colorScheme
      || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    root.style.colorScheme = now === "dark" ? "light" : "dark";
  });
  const charts = JSON.parse(document.getElementById("data").textContent);
  const empty = document.getElementById("empty"); // of a page that shows charts
  const likeness = (chart) => JSON.stringify(
    [chart.title, chart.series.map((one) => [one.name, one.color])]);
  let made = [];
  const show = (charts) => {
    if (empty) empty.hidden = charts.length > 0;
    const same = charts.length === made.length
      && charts.every((chart, i) => likeness(chart) === likeness(made[i].data));
    if (same) {
      charts.forEach((chart, i) => made[i].update(chart));
      return;
    }
    const parent = document.getElementById("charts");
    parent.replaceChildren();
    made = charts.map((chart) => new Chart(chart, parent));
  };
  if (charts) show(charts);
  // A page that follows a run says so with every change.
  document.addEventListener("charts", (event) => show(event.detail));
})();
