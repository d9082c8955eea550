// The spectra of chosen pixels.
import { axisOf, clear, curves } from "./curves.js";
import { byId, figure, make } from "./dom.js";

const COLOURS = ["--pin-1", "--pin-2", "--pin-3"];

export class Spectra {
  /**
   * @param facts of the scene
   * @param pixels of the scene
   * @param changed is told the pins, {x, y, colour}
   */
  constructor(facts, pixels, changed) {
    Object.assign(this, { facts, pixels, changed, pins: [] });
    this.axis = axisOf(facts.wavelength, facts.good.length);
    const [top, , left] = facts.pixels.window;
    this.origin = { x: left * facts.pixels.scale, y: top * facts.pixels.scale };
    byId("clear").addEventListener("click", () => this.#set([]));
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.pick(byId("column").valueAsNumber - this.origin.x, byId("row").valueAsNumber - this.origin.y);
    });
    this.#draw();
  }

  /** Add the spectrum of an HR pixel of the window; the oldest of three goes. */
  async pick(x, y) {
    const place = this.#name(x, y);
    if (!Number.isInteger(x) || !Number.isInteger(y) || !this.pixels.hasSpectrum(x, y)) {
      this.#say(`${place} lies outside the square whose spectra are in this report.`);
      return;
    }
    byId("row").value = y + this.origin.y;
    byId("column").value = x + this.origin.x;
    this.#say(`Loading ${place}`);
    try {
      const values = await this.pixels.spectrum(x, y);
      const others = this.pins.filter((pin) => pin.x !== x || pin.y !== y).slice(-(COLOURS.length - 1));
      const free = COLOURS.find((colour) => others.every((pin) => pin.variable !== colour));
      this.#set([...others, { x, y, variable: free, values }]);
      this.#say(`Spectrum of ${place}`);
    } catch (error) {
      this.#say(`The spectrum of ${place} cannot be shown: ${error.message}`);
    }
  }

  #name(x, y) {
    return `row ${y + this.origin.y}, column ${x + this.origin.x}`;
  }

  #say(text) {
    byId("spectrum-status").textContent = text;
  }

  #set(pins) {
    this.pins = pins;
    const style = getComputedStyle(document.documentElement);
    this.changed(pins.map((pin) => ({ ...pin, colour: style.getPropertyValue(pin.variable).trim() })));
    this.#draw();
  }

  #draw() {
    const { pins } = this;
    byId("clear").disabled = pins.length === 0;
    byId("spectrum").hidden = pins.length === 0;
    byId("spectrum-values").hidden = pins.length === 0;
    if (!pins.length) {
      clear(byId("spectrum"));
      return;
    }
    const lines = pins.flatMap((pin) => {
      const { x, y, values, variable: colour } = pin;
      const place = `${y + this.origin.y}, ${x + this.origin.x}`;
      const away = (sign) => values.spread?.map((spread, band) => (spread === null ? null : values.high[band] + sign * spread));
      const kinds = [
        { label: "SR + spread", values: this.#good(away(1)), colour, width: 0, fills: true },
        { label: "SR - spread", values: this.#good(away(-1)), colour, width: 0 },
        { label: `SR ${place}`, values: this.#good(values.high), colour, width: 2 },
        { label: "bicubic", values: this.#good(values.bicubic), colour, dash: [6, 4] },
        { label: "LR", values: this.#good(values.low), colour, points: true },
      ];
      return kinds.filter((kind) => kind.values);
    });
    curves(byId("spectrum"), this.axis, valueLabel(this.facts), lines);
    this.#table(pins.at(-1));
  }

  /** Bands that are not good are gaps. */
  #good(values) {
    return values?.map((value, band) => (this.facts.good[band] ? value : null));
  }

  #table(pin) {
    const { high, spread, bicubic, low } = pin.values;
    const names = [["SR", high], ["spread", spread], ["bicubic", bicubic], ["LR", low]].filter(([, values]) => values);
    const head = make("tr", {}, ...["band", this.axis.short, ...names.map(([name]) => name)].map((name) => make("th", { scope: "col" }, name)));
    const rows = this.axis.bands.map((band) =>
      make(
        "tr",
        {},
        make("th", { scope: "row" }, String(band + 1)),
        make("td", {}, figure(this.facts.wavelength?.[band] ?? band + 1, 7)),
        ...names.map(([, values]) => make("td", {}, this.facts.good[band] ? figure(values[band], 6) || "no value" : "not a good band")),
      ),
    );
    const caption = make("caption", {}, `Values of ${this.#name(pin.x, pin.y)}`);
    byId("spectrum-table").replaceChildren(caption, make("thead", {}, head), make("tbody", {}, ...rows));
  }
}

/** How an axis of values is called. */
export function valueLabel(facts) {
  return facts.units ? `value, ${facts.units}` : "value (the scene states no units)";
}
