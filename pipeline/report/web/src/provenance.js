// How a scene was made, and how to open it.
import { byId, copyable, make } from "./dom.js";

export function provenance(facts) {
  const address = JSON.stringify(facts.address);
  const code = `import xarray\n\nscene = xarray.open_zarr(${address})\nscene["reflectance"]`;
  byId("open").append(copyable(code, "code that opens the scene"));
  byId("record").append(list(facts.provenance));
  byId("card").append(list(facts.card));
}

function list(entries) {
  const rows = Object.entries(entries).map(([key, value]) => make("div", {}, make("dt", {}, key.replaceAll("_", " ")), make("dd", {}, shown(value))));
  return make("dl", { class: "record" }, ...rows);
}

function shown(value) {
  if (value === null || value === "") return "not stated";
  if (Array.isArray(value)) return value.length ? value.map((each) => (each instanceof Object ? JSON.stringify(each) : String(each))).join(", ") : "none";
  return value instanceof Object ? list(value) : String(value);
}
