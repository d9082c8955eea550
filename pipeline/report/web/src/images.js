// What the viewer shows: composite, one band or the error map, at both sides of the divider.
import { diverging, errorLimit, errorPicture, picture, stretch } from "./colours.js";
import { byId, figure, make } from "./dom.js";

const SIDES = { low: "LR", bicubic: "Bicubic", high: "SR" };

export class Images {
  constructor(facts, pixels, viewer) {
    Object.assign(this, { facts, pixels, viewer, asked: 0 });
    this.bandNames = facts.pixels.bands.map((band) => [band, bandName(facts, band)]);
    const composite = ["red", "green", "blue"];
    composite.forEach((id, index) => this.#options(id, this.bandNames, facts.pixels.composite[index]));
    this.#options("band", this.bandNames, facts.pixels.composite[0]);
    if (!facts.pixels.has_low) byId("view").querySelector('option[value="error"]').remove();
    for (const id of ["view", "red", "green", "blue", "band", "left", "right"]) {
      byId(id).addEventListener("change", () => this.show());
    }
    this.#sides();
  }

  /** Load what is chosen and draw it; an answer that comes late is dropped. */
  async show() {
    this.#sides();
    this.asked += 1;
    const { asked } = this;
    const view = byId("view").value;
    const chosen = view === "composite" ? ["red", "green", "blue"] : ["band"];
    byId("viewer-status").textContent = "Loading";
    try {
      const bands = await Promise.all(chosen.map((id) => this.pixels.band(Number(byId(id).value))));
      if (asked !== this.asked) return;
      if (view === "error") this.#errors(bands[0]);
      else this.#values(bands, chosen);
      byId("viewer-status").textContent = "";
      document.documentElement.dataset.shown = `${view} ${byId("left").value} ${byId("right").value}`;
    } catch (error) {
      if (asked === this.asked) byId("viewer-status").textContent = error.message;
    }
  }

  #values(bands, chosen) {
    const stretches = bands.map(stretch);
    const images = ["left", "right"].map((side) => {
      const kind = byId(side).value;
      return picture(bands.map((band) => band[kind]), stretches, kind === "low" ? this.pixels.low : this.pixels.high);
    });
    this.viewer.show(...images);
    const base = this.facts.pixels.has_low ? "LR" : "SR";
    const ranges = stretches.map(({ low, high }, index) => {
      const name = chosen.length > 1 ? `${chosen[index]} ` : "";
      return `${name}${figure(low)} to ${figure(high)}`;
    });
    byId("legend").replaceChildren(
      make("span", {}, `Black to white: ${ranges.join("; ")} (2nd to 98th percentile of ${base} in this window, the same for both sides).`),
    );
  }

  #errors(band) {
    const limit = errorLimit(band);
    const images = ["left", "right"].map((side) => errorPicture(band.error[byId(side).value], limit, this.pixels.low));
    this.viewer.show(...images);
    const [high, bicubic] = band.error.rms.map((value) => figure(value) || "unknown");
    const bar = make("canvas", { width: "220", height: "14", class: "bar", role: "img", "aria-label": `Colours from ${figure(-limit)} to ${figure(limit)}` });
    paint(bar);
    byId("legend").replaceChildren(
      make("span", { class: "scale" }, make("span", {}, figure(-limit)), bar, make("span", {}, figure(limit))),
      make(
        "span",
        {},
        ` Degraded result minus LR, on LR pixels; the colours end at the 99th percentile of the size of both errors. RMS in this window: SR ${high}, bicubic ${bicubic}.`,
      ),
    );
  }

  /** Which choices there are: errors are of results, and without a source there is the result only. */
  #sides() {
    const view = byId("view").value;
    const kinds = !this.facts.pixels.has_low ? ["high"] : view === "error" ? ["bicubic", "high"] : ["low", "bicubic", "high"];
    for (const [id, fallback] of [["left", kinds[0]], ["right", "high"]]) {
      const before = byId(id).value;
      this.#options(id, kinds.map((kind) => [kind, SIDES[kind]]), kinds.includes(before) ? before : fallback);
    }
    byId("composite-controls").hidden = view !== "composite";
    byId("band-controls").hidden = view === "composite";
  }

  #options(id, entries, chosen) {
    const options = entries.map(([value, text]) => make("option", { value, selected: String(value) === String(chosen) }, text));
    byId(id).replaceChildren(...options);
  }
}

function bandName(facts, band) {
  const nm = facts.wavelength?.[band];
  return Number.isFinite(nm) ? `${band + 1}: ${figure(nm, 5)} nm` : `${band + 1}`;
}

function paint(canvas) {
  const context = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x += 1) {
    context.fillStyle = `rgb(${diverging((2 * x) / (canvas.width - 1) - 1).map(Math.round).join(" ")})`;
    context.fillRect(x, 0, 1, canvas.height);
  }
}
