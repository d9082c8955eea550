// Values to colours. Images of one view share one stretch; nothing is smoothed.
import { quantile } from "./pixels.js";

// Purple to orange, which people with colour blindness tell apart (ColorBrewer PuOr).
const DIVERGING = [
  [45, 0, 75], [84, 39, 136], [128, 115, 172], [178, 171, 210], [216, 218, 235], [247, 247, 247],
  [254, 224, 182], [253, 184, 99], [224, 130, 20], [179, 88, 6], [127, 59, 8],
];
const STRETCH = [0.02, 0.98];
const ERRORS = 0.99;

/** Black and white of a band: of LR where it is there, else of the result. */
export function stretch(band) {
  const values = band.low ?? band.high;
  const [low, high] = STRETCH.map((share) => quantile(values, share));
  return high > low ? { low, high } : { low: low - 0.5, high: low + 0.5 };
}

/** The error at which the colours end, the same for all images of a band. */
export function errorLimit(band) {
  const sizes = [...band.error.high, ...band.error.bicubic].map(Math.abs);
  return quantile(sizes, ERRORS) || 1e-12;
}

/** A canvas of grey or of three colours, transparent where a plane has no value. */
export function picture(planes, stretches, { width, height }) {
  return painted(width, height, (place) => {
    const colour = planes.map((plane, index) => {
      const { low, high } = stretches[index];
      return 255 * Math.min(1, Math.max(0, (plane[place] - low) / (high - low)));
    });
    return colour.length === 1 ? [colour[0], colour[0], colour[0]] : colour;
  });
}

export function errorPicture(plane, limit, { width, height }) {
  return painted(width, height, (place) => diverging(plane[place] / limit));
}

/** A colour of the error map; `part` from -1 to 1. */
export function diverging(part) {
  const place = ((Math.min(1, Math.max(-1, part)) + 1) / 2) * (DIVERGING.length - 1);
  const low = DIVERGING[Math.floor(place)] ?? [NaN, NaN, NaN];
  const high = DIVERGING[Math.ceil(place)] ?? low;
  return low.map((value, index) => value + (place % 1) * (high[index] - value));
}

function painted(width, height, colourOf) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let place = 0; place < width * height; place += 1) {
    const colour = colourOf(place);
    if (colour.some(Number.isNaN)) continue;
    image.data.set([...colour.map(Math.round), 255], 4 * place);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}
