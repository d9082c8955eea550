// Footprints over the coastlines of Natural Earth; no tiles are fetched.
import { geoCentroid, geoGraticule10, geoNaturalEarth1, geoPath } from "d3-geo";
import { select } from "d3-selection";
import { zoom, zoomIdentity } from "d3-zoom";
import { feature } from "topojson-client";
import atlas from "world-atlas/land-110m.json";
import { make } from "./dom.js";

const WIDTH = 960;
const HEIGHT = 480;
const DEEPEST = 20000;
const SMALLEST = 6; // CSS pixels below which an outline is shown as a dot of that size

/** @param scenes rows with an outline and a page */
export function map(place, scenes) {
  const projection = geoNaturalEarth1().fitSize([WIDTH, HEIGHT], { type: "Sphere" });
  const path = geoPath(projection);
  const svg = select(place)
    .append("svg")
    .attr("viewBox", `0 0 ${WIDTH} ${HEIGHT}`)
    .attr("role", "group")
    .attr("tabindex", "0")
    .attr("aria-label", `Map of ${scenes.length} footprints. Plus and minus zoom, arrows pan; the table below lists the same scenes.`);
  const ground = svg.append("g");
  ground.append("path").attr("class", "sea").attr("d", path({ type: "Sphere" }));
  ground.append("path").attr("class", "graticule").attr("d", path(geoGraticule10()));
  ground.append("path").attr("class", "land").attr("d", path(feature(atlas, atlas.objects.land)));
  const marks = svg.append("g");
  const drawn = scenes.map((scene) => mark(marks, path, projection, scene));

  const behaviour = zoom()
    .scaleExtent([1, DEEPEST])
    .translateExtent([[0, 0], [WIDTH, HEIGHT]])
    .on("zoom", ({ transform }) => {
      ground.attr("transform", transform);
      marks.attr("transform", transform);
      const unit = WIDTH / (svg.node().clientWidth || WIDTH) / transform.k;
      for (const each of drawn) each.rescale(unit);
    });
  svg.call(behaviour);
  const go = (change, ...rest) => svg.call(behaviour[change], ...rest);
  const fit = () => go("transform", around(drawn));
  const keys = {
    "+": () => go("scaleBy", 2),
    "=": () => go("scaleBy", 2),
    "-": () => go("scaleBy", 0.5),
    0: () => go("transform", zoomIdentity),
    ArrowLeft: () => pan(1, 0),
    ArrowRight: () => pan(-1, 0),
    ArrowUp: () => pan(0, 1),
    ArrowDown: () => pan(0, -1),
  };
  function pan(right, down) {
    const { k } = svg.node().__zoom;
    go("translateBy", (right * 80) / k, (down * 80) / k);
  }
  svg.on("keydown", (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  place.append(
    make(
      "div",
      { class: "buttons" },
      make("button", { type: "button", "aria-label": "Zoom in", click: keys["+"] }, "+"),
      make("button", { type: "button", "aria-label": "Zoom out", click: keys["-"] }, "\u2212"),
      make("button", { type: "button", click: fit }, "Scenes"),
      make("button", { type: "button", click: keys[0] }, "World"),
    ),
  );
  fit();
}

function mark(marks, path, projection, scene) {
  const [x, y] = projection(geoCentroid(scene.outline));
  const [[left, top], [right, bottom]] = path.bounds(scene.outline);
  const link = marks.append("a").attr("href", scene.page).attr("tabindex", "-1");
  link.append("title").text(scene.id);
  link.append("path").attr("class", "footprint").attr("d", path(scene.outline));
  const dot = link.append("circle").attr("class", "dot").attr("cx", x).attr("cy", y);
  const size = Math.max(right - left, bottom - top);
  return {
    bounds: [left, top, right, bottom],
    rescale: (unit) => dot.attr("r", size < SMALLEST * unit ? SMALLEST * unit : 0),
  };
}

/** The transform that shows all marks, with the land around them. */
function around(drawn) {
  const sides = [0, 1, 2, 3].map((side) => drawn.map((each) => each.bounds[side]));
  const [left, top] = [Math.min(...sides[0]), Math.min(...sides[1])];
  const [right, bottom] = [Math.max(...sides[2]), Math.max(...sides[3])];
  const scale = Math.min(12, 0.8 / Math.max((right - left) / WIDTH, (bottom - top) / HEIGHT, 1e-9));
  const k = Math.max(1, scale);
  return zoomIdentity
    .translate(WIDTH / 2, HEIGHT / 2)
    .scale(k)
    .translate(-(left + right) / 2, -(top + bottom) / 2);
}
