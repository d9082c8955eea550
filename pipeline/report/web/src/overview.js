import { byId, copyable, fail, make, percent } from "./dom.js";
import { map } from "./map.js";
import { receive, unpackJson } from "./receive.js";
import { table } from "./table.js";

const page = (scene) => `scenes/${encodeURIComponent(scene.id)}/index.html`;
const hasPage = (scene) => scene.bands !== undefined;
const minute = (time) => (time ?? "").slice(0, 16).replace("T", " ");

const COLUMNS = [
  { title: "Scene", value: (scene) => scene.id, cell: name },
  { title: "Sensor", short: true, value: (scene) => scene.sensor, cell: (scene) => scene.sensor ?? "" },
  { title: "Taken", value: (scene) => scene.datetime, cell: (scene) => minute(scene.datetime) },
  { title: "Bands", value: (scene) => scene.bands, cell: (scene) => scene.bands ?? "", number: true },
  {
    title: "Pixels",
    value: (scene) => (hasPage(scene) ? scene.rows * scene.columns : null),
    cell: (scene) => (hasPage(scene) ? `${scene.rows} \u00d7 ${scene.columns}` : ""),
    number: true,
  },
  { title: "Scale", value: (scene) => scene.scale, cell: (scene) => (scene.scale ? `\u00d7${scene.scale}` : ""), number: true },
  { title: "Inconsistency", short: true, value: (scene) => scene.inconsistency, cell: (scene) => percent(scene.inconsistency), number: true },
  { title: "of bicubic", short: true, value: (scene) => scene.of_bicubic, cell: (scene) => percent(scene.of_bicubic), number: true },
  { title: "Published", value: (scene) => scene.published, cell: (scene) => minute(scene.published) },
  { title: "Note", value: (scene) => scene.note, cell: (scene) => (hasPage(scene) ? (scene.note ?? "") : "no page was made; run the report again") },
];

function name(scene) {
  if (!hasPage(scene)) return make("span", {}, scene.id);
  const picture =
    scene.pictures &&
    make("img", { src: page(scene).replace("index.html", "thumbnail.webp"), alt: "", loading: "lazy", decoding: "async" });
  return make("a", { href: page(scene), class: "scene" }, picture || null, make("span", {}, scene.id));
}

function setAside(rows) {
  byId("aside").hidden = rows.length === 0;
  byId("aside-list").append(
    ...rows.map((row) => {
      const done = row.status === "unfinished" ? `${row.tiles_done} of ${row.tiles} tiles done` : "";
      return make(
        "li",
        {},
        make("h3", {}, row.id),
        make("p", {}, make("strong", {}, row.code || row.status), ` ${row.message || done}`),
        make("p", { class: "quiet" }, [minute(row.time), row.run_id && `run ${row.run_id}`].filter(Boolean).join(", ")),
        copyable(row.command, `command that tries ${row.id} again`),
      );
    }),
  );
}

function runs(rows) {
  byId("runs").hidden = rows.length === 0;
  byId("run-list").append(
    ...rows.map((run) => {
      const counts = Object.entries(run.counts).map(([status, count]) => `${count} ${status}`);
      const notes = run.notes.length ? make("ul", {}, ...run.notes.map((note) => make("li", {}, note))) : null;
      return make("li", {}, `${minute(run.started)}: ${counts.join(", ")} in ${run.seconds} s (run ${run.run_id})`, notes);
    }),
  );
}

function summary(facts) {
  const placed = facts.scenes.filter((scene) => scene.outline);
  const pixels = facts.scenes.reduce((sum, scene) => sum + (hasPage(scene) ? scene.rows * scene.columns : 0), 0);
  const tiles = [
    [facts.scenes.length, "published"],
    [facts.aside.filter((row) => row.status === "quarantined").length, "set aside"],
    [facts.aside.filter((row) => row.status === "unfinished").length, "unfinished"],
    [placed.length, "with a place on the map"],
    [(pixels / 1e6).toFixed(1), "million HR pixels"],
  ];
  byId("output").textContent = facts.output;
  byId("summary").append(...tiles.flatMap(([count, what]) => [make("div", {}, make("dd", {}, String(count)), make("dt", {}, what))]));
  byId("map-section").hidden = placed.length === 0;
  if (placed.length) map(byId("map"), placed.map((scene) => ({ ...scene, page: page(scene) })));
}

async function start() {
  const facts = await unpackJson(await receive("overview-data.js", "overview"));
  summary(facts);
  const columns = COLUMNS.filter(({ cell }, index) => !index || facts.scenes.some(cell));
  table({ table: byId("scenes"), search: byId("search"), count: byId("count") }, columns, facts.scenes);
  setAside(facts.aside);
  runs(facts.runs);
  document.documentElement.dataset.ready = "yes";
}

start().catch(fail);
