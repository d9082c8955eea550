import { axisOf, curves } from "./curves.js";
import { byId, fail, figure, make, percent } from "./dom.js";
import { Images } from "./images.js";
import { Pixels } from "./pixels.js";
import { provenance } from "./provenance.js";
import { receive } from "./receive.js";
import { Spectra } from "./spectra.js";
import { Viewer } from "./viewer.js";

function heading({ row, reader_notes: notes, origin }) {
  document.title = `${row.id} \u2013 sr-archive report`;
  byId("title").textContent = row.id;
  const entries = [
    ["Sensor", row.sensor],
    ["Taken", row.datetime],
    ["Bands", row.bands],
    ["HR pixels", `${row.rows} \u00d7 ${row.columns}`],
    ["Scale", `\u00d7${row.scale}`],
    ["Model", row.model],
    ["Note", row.note],
    ["Reader", notes],
  ].filter(([, value]) => value);
  byId("facts").append(...entries.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(value)))));
  if (origin) {
    byId("origin").hidden = false;
    byId("origin").textContent = `The source is not at hand, so LR, bicubic and errors are not shown: ${origin}`;
  }
}

/** Which part of the scene the images and the spectra cover. */
function coverage({ row, pixels: { window, size, scale, spectra, exact, step } }) {
  const [top, bottom, left, right] = window;
  const whole = bottom - top === size[0] && right - left === size[1];
  const rows = `rows ${top * scale} to ${bottom * scale - 1}, columns ${left * scale} to ${right * scale - 1}`;
  const all = spectra[0] === 0 && spectra[1] === bottom - top && spectra[2] === 0 && spectra[3] === right - left;
  const precision = exact
    ? "Values are the stored counts."
    : `Values are rounded to 16 bits per band (steps of at most ${figure(Math.max(...step), 3)}).`;
  byId("coverage").textContent = [
    whole ? "The whole scene is shown." : `A window of the scene is shown: ${rows} of ${row.rows} \u00d7 ${row.columns}.`,
    all ? "" : "Spectra can be read in the white frame.",
    precision,
  ].filter(Boolean).join(" ");
  if (whole || !row.pictures) return;
  byId("whole").hidden = false;
  byId("whole-picture").append(make("img", { src: "quicklook.png", alt: "Quicklook of the whole scene" }), windowFrame(window, size));
}

function windowFrame([top, bottom, left, right], [rows, columns]) {
  const frame = make("div", { class: "frame" });
  Object.assign(frame.style, {
    top: `${(100 * top) / rows}%`,
    left: `${(100 * left) / columns}%`,
    width: `${(100 * (right - left)) / columns}%`,
    height: `${(100 * (bottom - top)) / rows}%`,
  });
  return frame;
}

function viewer(facts, pixels) {
  const slider = byId("divider");
  const listeners = { pick: () => {}, moved: (share) => move(share) };
  const view = new Viewer(byId("canvas"), pixels.high, listeners);
  const move = (share) => {
    slider.value = Math.round(1000 * share) / 10;
    slider.setAttribute("aria-valuetext", `${Math.round(100 * share)} % left image`);
    view.set({ divider: share });
  };
  slider.addEventListener("input", () => move(slider.valueAsNumber / 100));
  move(0.5);
  byId("zoom-in").addEventListener("click", () => view.zoomBy(2));
  byId("zoom-out").addEventListener("click", () => view.zoomBy(0.5));
  byId("native").addEventListener("click", () => view.zoomTo(1));
  byId("fit").addEventListener("click", () => view.zoomTo());
  const [top, bottom, left, right] = facts.pixels.spectra.map((edge) => edge * facts.pixels.scale);
  const whole = bottom - top === pixels.high.height && right - left === pixels.high.width;
  if (!whole) view.set({ frame: [left, top, right - left, bottom - top] });
  return { view, listeners };
}

function consistency(facts) {
  const { degradation, high, bicubic } = facts.consistency;
  const bad = (values) => values.map((value, band) => (facts.good[band] ? value : null));
  const bands = facts.good.length;
  const row = (name, figures) =>
    make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, percent(figures.relative_rmse)), make("td", {}, figure(figures.rmse)), make("td", {}, figure(figures.sam_degrees)));
  byId("consistency-rows").append(row("SR", high), row("bicubic", bicubic));
  byId("degradation").textContent = degradation || "not stated";
  if (!high.rmse_per_band.length) return;
  const lines = [
    { label: "SR", values: bad(high.rmse_per_band), colour: "--pin-1", width: 2 },
    { label: "bicubic", values: bad(bicubic.rmse_per_band), colour: "--pin-2", dash: [6, 4] },
  ];
  const units = facts.units ? `, ${facts.units}` : "";
  curves(byId("consistency"), axisOf(facts.wavelength, bands), `RMSE of degraded minus LR${units}`, lines);
}

function seams({ borders, borders_of_scene: there, largest_difference: largest, largest_physical: physical, bound, tiles }, units) {
  const text =
    borders === undefined ? "not stated"
    : there === 0 ? "The scene is one tile: it has no borders between tiles."
    : borders === 0 ? `None of the ${there} borders between tiles was computed again across.`
    : `${borders} of ${there} borders between tiles, computed again across in one piece (${tiles.map((pair) => pair.join(" | ")).join(", ")}), differ by at most ${figure(largest)} of the network's range beyond a stored step, ${figure(physical)}${units ? ` ${units}` : ""} as stored${bound === null ? "; attention was pooled per tile, so there is no bound" : ` (bound ${figure(bound)})`}.`;
  byId("seams").textContent = text;
}

async function start() {
  const facts = await receive("scene.js", "scene");
  const pixels = new Pixels(facts.pixels);
  heading(facts);
  coverage(facts);
  provenance(facts);
  const { view, listeners } = viewer(facts, pixels);
  const spectra = new Spectra(facts, pixels, (pins) => view.set({ pins }));
  listeners.pick = (x, y) => spectra.pick(x, y);
  globalThis.srReport = { pixels, view, spectra };
  consistency(facts);
  seams(facts.seams, facts.units);
  await new Images(facts, pixels, view).show();
  document.documentElement.dataset.ready = "yes";
}

start().catch(fail);
