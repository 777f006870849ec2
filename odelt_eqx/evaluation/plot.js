"use strict";
const at = id => document.getElementById(id);
const make = (name, attributes, text) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
};
const number = x => Number(x.toPrecision(3)).toString();
const measured = (value, error) => {  // to two digits of the error
  if (!error) return number(value);
  const digits = Math.max(0, 1 - Math.floor(Math.log10(error)));
  return value.toFixed(digits) + " ± " + error.toFixed(digits);
};
const unique = values => [...new Set(values)];
const depthColour = (depth, depths) => {
  const place = depths.indexOf(depth) / Math.max(1, depths.length - 1);
  return "oklch(var(--tone) 0.17 " + (262 + 133 * place) + ")";
};

function ticks(low, high, log) {
  const found = [];
  if (log) {
    const bases = high / low > 200 ? [1] : high / low > 20 ? [1, 3] : [1, 2, 5];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const base of bases) found.push(base * 10 ** power);
  } else {
    const rough = high / 5, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map(base => base * power).find(size => size >= rough);
    for (let tick = 0; tick <= high; tick += step) found.push(tick);
  }
  return found.filter(tick => tick >= low && tick <= high);
}

function chart(place, costs, distances, real, unit, label) {  // axes, and where a cost and a distance lie
  const width = Math.max(280, place.clientWidth), height = Math.min(440, Math.max(300, 0.62 * width));
  const left = 46, right = 14, top = 14, bottom = 44;
  const values = distances.concat(real > 0 ? [real] : []);
  const log = Math.max(...values) > 8 * Math.min(...values);
  const [x0, x1] = [Math.min(...costs) / 1.25, Math.max(...costs) * 1.25];
  const [y0, y1] = log ? [Math.min(...values) / 1.25, Math.max(...values) * 1.2] : [0, Math.max(...values) * 1.1];
  const x = cost => left + (width - left - right) * Math.log(cost / x0) / Math.log(x1 / x0);
  const share = value => log ? Math.log(value / y0) / Math.log(y1 / y0) : (value - y0) / (y1 - y0);
  const y = value => top + (height - top - bottom) * (1 - share(Math.max(value, y0 || 1e-12)));
  const svg = make("svg", { viewBox: "0 0 " + width + " " + height, role: "img", "aria-label": label });
  for (const tick of ticks(x0, x1, true)) {
    svg.append(make("line", { class: "axis", x1: x(tick), x2: x(tick), y1: top, y2: height - bottom }));
    svg.append(make("text", { x: x(tick), y: height - bottom + 17, "text-anchor": "middle" }, number(tick)));
  }
  for (const tick of ticks(y0, y1, log)) {
    svg.append(make("line", { class: "axis", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }));
    svg.append(make("text", { x: left - 7, y: y(tick) + 4, "text-anchor": "end" }, number(tick)));
  }
  svg.append(make("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, unit));
  if (real > 0) {
    svg.append(make("line", { class: "real", x1: left, x2: width - right, y1: y(real), y2: y(real) }));
    svg.append(make("text", { x: left + 6, y: y(real) - 6 }, "real samples"));
  }
  svg.addEventListener("click", event => {  // where dots crowd, the nearest is meant
    const far = place => {
      const box = place.querySelector("circle").getBoundingClientRect();
      return Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
    };
    const nearest = [...svg.querySelectorAll(".dot")].reduce((a, b) => far(b) < far(a) ? b : a);
    if (far(nearest) < 20) nearest.dispatchEvent(new Event("choose"));
  });
  return { svg, x, y };
}

function dot(x, y, quality, colour, title, choose) {  // a setting, with its standard error
  const group = make("g", { class: "dot", tabindex: 0, style: "color:" + colour });
  const error = quality.frechet_error || 0;
  group.append(make("line", { x1: x, x2: x, y1: y(quality.frechet + error), y2: y(quality.frechet - error),
    stroke: "currentColor", "stroke-width": 1.5 }));
  group.append(make("circle", { cx: x, cy: y(quality.frechet), r: 13, fill: "transparent", style: "stroke:none" }));
  group.append(make("circle", { cx: x, cy: y(quality.frechet), r: 5, fill: "currentColor" }));
  group.append(make("title", {}, title));
  group.addEventListener("choose", choose);
  group.addEventListener("keydown", event => { if (event.key === "Enter") choose(); });
  return group;
}
