// Draws data_visualization blocks. Labels are text of the page, so that a phone shows them at full size.

import { h } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";

function legend(names) {
  return names.length < 2 ? null : h("div", { class: "chart-legend" }, names.map((name, index) => h("span", { class: `series-${index % 6}` }, name)));
}

function bars(series) {
  const most = Math.max(...series.flatMap((one) => one.data.map((point) => Math.abs(point.value))), 1e-12);
  const rows = series[0].data.map((point, place) =>
    h("div", { class: "chart-row" },
      h("span", { class: "chart-label" }, point.label),
      h("span", { class: "chart-bars" }, series.map((one, index) => {
        const bar = h("span", { class: `chart-bar series-${index % 6}` });
        bar.style.width = `${(100 * Math.abs(one.data[place].value)) / most}%`;
        return h("span", { class: "chart-track" }, bar, h("span", { class: "chart-value" }, shown(one.data[place].value)));
      }))));
  return h("div", { class: "chart-rows" }, rows);
}

function lines(series, filled) {
  const values = series.flatMap((one) => one.data.map((point) => point.value));
  const low = Math.min(0, ...values);
  const high = Math.max(...values) > low ? Math.max(...values) : low + 1;
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("viewBox", "0 0 100 100");
  picture.setAttribute("preserveAspectRatio", "none");
  picture.setAttribute("class", "chart-plot");
  series.forEach((one, index) => {
    const across = (place) => (one.data.length === 1 ? 50 : (100 * place) / (one.data.length - 1));
    const points = one.data.map((point, place) => `${across(place)},${98 - (96 * (point.value - low)) / (high - low)}`);
    const line = document.createElementNS(SVG, filled ? "polygon" : "polyline");
    line.setAttribute("points", (filled ? ["0,98", ...points, "100,98"] : points).join(" "));
    line.setAttribute("class", `chart-line series-${index % 6}${filled ? " filled" : ""}`);
    picture.append(line);
  });
  const labels = series[0].data.map((point) => point.label);
  const every = Math.ceil(labels.length / 6);
  return h("div", {},
    h("div", { class: "chart-high" }, shown(high)),
    picture,
    h("div", { class: "chart-axis" }, labels.map((label, place) => h("span", {}, place % every === 0 ? label : ""))));
}

function shown(value) {
  return Number.isInteger(value) ? String(value) : value.toPrecision(3);
}

export function chart(block) {
  const { type, series, segments, axis_config: axis } = block.chart;
  const drawn = type === "pie" ? [{ name: "", data: segments }] : series;
  const body = type === "line" || type === "area" ? lines(drawn, type === "area") : bars(drawn);
  const units = axis?.x_label || axis?.y_label ? h("div", { class: "chart-units" }, [axis.y_label, axis.x_label].filter(Boolean).join(" by ")) : null;
  return h("figure", { class: "chart", "aria-label": block.title }, h("figcaption", {}, block.title), units, legend(drawn.map((one) => one.name)), body);
}
