// Curves over wavelength, with gaps at bands that are not good.
import uPlot from "uplot";
import { figure } from "./dom.js";

const HEIGHT = 320;
const dark = globalThis.matchMedia("(prefers-color-scheme: dark)");
const drawn = new Set();
const FARTHEST = 5; // band steps; neighbours farther apart are not joined, for nothing was measured between

const FAINT = "40"; // alpha of an area, behind a colour of six digits

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** The bands in order of the axis: wavelengths where all are known, else band numbers. */
export function axisOf(wavelength, bands) {
  const known = wavelength?.length === bands && wavelength.every(Number.isFinite);
  const values = known ? wavelength : Array.from({ length: bands }, (_, band) => band + 1);
  const order = withBreaks(Array.from(values.keys()).sort((one, other) => values[one] - values[other]), values);
  return {
    label: known ? "wavelength, nm" : "band number (no wavelengths stated)",
    short: known ? "nm" : "band",
    bands: order.filter((band) => Number.isInteger(band)),
    values: order.map((band) => values[Math.floor(band)] + (Number.isInteger(band) ? 0 : 1e-6)),
    arrange: (curve) => order.map((band) => curve[band] ?? null),
  };
}

/** The order with half a band after each that ends a run: a place without a value. */
function withBreaks(order, values) {
  const steps = order.slice(1).map((band, place) => values[band] - values[order[place]]);
  const typical = [...steps].sort((one, other) => one - other)[Math.floor(steps.length / 2)];
  return order.flatMap((band, place) => (steps[place] > FARTHEST * typical ? [band, band + 0.5] : [band]));
}

/**
 * @param place element that gets the curves
 * @param axis of `axisOf`
 * @param label of the values
 * @param lines of {label, values by band, colour, dash, points, fills: down to the next line}
 */
export function curves(place, axis, label, lines) {
  const state = { place, plot: null };
  const draw = () => {
    state.plot?.destroy();
    const grid = { stroke: css("--line"), width: 1 };
    const ink = { stroke: css("--ink"), grid, ticks: grid, font: "12px system-ui", labelFont: "13px system-ui" };
    const options = {
      width: Math.max(240, place.clientWidth),
      height: HEIGHT,
      scales: { x: { time: false } },
      legend: { live: true },
      cursor: { drag: { x: true, y: false } },
      axes: [
        { ...ink, label: axis.label },
        { ...ink, label, size: 64, values: (_, ticks) => ticks.map((tick) => figure(tick, 6)) },
      ],
      bands: lines.flatMap((line, place) => (line.fills ? [{ series: [place + 1, place + 2], fill: css(line.colour) + FAINT }] : [])),
      series: [
        { label: axis.short, value: (_, value) => figure(value, 6) || "--" },
        ...lines.map((line) => ({
          label: line.label,
          stroke: css(line.colour),
          width: line.width ?? 1.5,
          dash: line.dash,
          paths: line.points ? () => null : undefined,
          points: { show: Boolean(line.points), size: 5, width: 1, fill: css(line.colour) },
          value: (_, value) => figure(value) || "--",
          spanGaps: false,
        })),
      ],
    };
    const data = [axis.values, ...lines.map((line) => axis.arrange(line.values))];
    state.plot = new uPlot(options, data, place);
    state.plot.root.querySelector("canvas").setAttribute("aria-hidden", "true");
  };
  state.draw = draw;
  for (const other of drawn) if (other.place === place) remove(other);
  drawn.add(state);
  draw();
}

function remove(state) {
  state.plot?.destroy();
  drawn.delete(state);
}

export function clear(place) {
  for (const state of drawn) if (state.place === place) remove(state);
}

dark.addEventListener("change", () => drawn.forEach((state) => state.draw()));
new ResizeObserver(() => {
  for (const { place, plot } of drawn) {
    const width = Math.max(240, place.clientWidth);
    if (plot && plot.width !== width) plot.setSize({ width, height: HEIGHT });
  }
}).observe(document.documentElement);
