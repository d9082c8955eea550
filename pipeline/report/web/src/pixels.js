// The pixels of one scene: codes to values, bicubic enlargement, spectra.
import { receive, remembering, unpack } from "./receive.js";

const NODATA = 65535;
const BANDS_KEPT = 8;
const BLOCKS_KEPT = 12;

export class Pixels {
  /** @param facts of pixels.py */
  constructor(facts) {
    const [top, bottom, left, right] = facts.window;
    this.facts = facts;
    this.low = { width: right - left, height: bottom - top };
    this.high = { width: facts.scale * this.low.width, height: facts.scale * this.low.height };
    this.blocks = remembering(BLOCKS_KEPT);
    this.bands = new Map();
  }

  /** Values of a band: `high`, and with a source `low`, `bicubic` and `error`; NaN is nodata. */
  band(index) {
    const found = this.bands.get(index) ?? this.#band(index);
    this.bands.delete(index);
    this.bands.set(index, found);
    found.catch(() => this.bands.delete(index));
    if (this.bands.size > BANDS_KEPT) this.bands.delete(this.bands.keys().next().value);
    return found;
  }

  async #band(index) {
    const payload = await receive(`bands/${index}.js`);
    const { offset, step, reach } = this.facts;
    const values = { high: decode(await unpack(payload.high, this.high.width), offset[index], step[index]) };
    if (!payload.low) return values;
    const width = this.low.width + 2 * reach;
    const padded = decode(await unpack(payload.low, width), offset[index], step[index]);
    const gaps = await unpack(payload.gaps, this.low.width);
    values.low = this.#inner(padded, gaps);
    values.bicubic = this.#enlarge(padded, gaps);
    const { error } = payload;
    values.error = {
      high: decode(await unpack(error.high, this.low.width), error.offset, error.step),
      bicubic: decode(await unpack(error.bicubic, this.low.width), error.offset, error.step),
      rms: error.rms,
    };
    return values;
  }

  #inner(padded, gaps) {
    const { reach } = this.facts;
    const { width, height } = this.low;
    const values = new Float32Array(width * height);
    for (let row = 0; row < height; row += 1) {
      const first = (row + reach) * (width + 2 * reach) + reach;
      values.set(padded.subarray(first, first + width), row * width);
    }
    return values.map((value, place) => (gaps[place] ? NaN : value));
  }

  /** As `model.degradation.upsample` of the whole scene; NaN where LR has a gap. */
  #enlarge(padded, gaps) {
    const { scale, kernel, reach } = this.facts;
    const outer = this.low.width + 2 * reach;
    const rows = this.low.height + 2 * reach;
    const { width, height } = this.high;
    const across = new Float64Array(rows * width);
    for (let row = 0; row < rows; row += 1) {
      for (let column = 0; column < width; column += 1) {
        const first = row * outer + Math.floor(column / scale);
        across[row * width + column] = weighted(padded, first, 1, kernel, column % scale, scale, reach);
      }
    }
    const values = new Float32Array(width * height);
    for (let row = 0; row < height; row += 1) {
      const low = Math.floor(row / scale);
      for (let column = 0; column < width; column += 1) {
        const gap = gaps[low * this.low.width + Math.floor(column / scale)];
        values[row * width + column] = gap
          ? NaN
          : weighted(across, low * width + column, width, kernel, row % scale, scale, reach);
      }
    }
    return values;
  }

  /** Whether the spectrum of an HR pixel of the window is there. */
  hasSpectrum(x, y) {
    const [top, bottom, left, right] = this.facts.spectra;
    const { scale } = this.facts;
    return y >= top * scale && y < bottom * scale && x >= left * scale && x < right * scale;
  }

  /**
   * Values of an HR pixel of the window by band: `high`, where the result has it `spread`, and with a
   * source `bicubic` and `low`.
   */
  async spectrum(x, y) {
    const { scale, block, reach, offset, step } = this.facts;
    const [top, bottom, left, right] = this.facts.spectra;
    const row = Math.floor(y / scale) - top;
    const column = Math.floor(x / scale) - left;
    const [down, over] = [Math.floor(row / block), Math.floor(column / block)];
    const payload = await this.blocks(`spectra/${down}.${over}.js`);
    const rows = Math.min(block, bottom - top - down * block);
    const columns = Math.min(block, right - left - over * block);
    const inside = { y: y - (top + down * block) * scale, x: x - (left + over * block) * scale };
    const width = columns * scale;
    const high = await unpack(payload.high, width);
    const plane = rows * scale * width;
    const value = (code, band) => (code === NODATA ? null : offset[band] + step[band] * code);
    const spectrum = { high: offset.map((_, band) => value(high[band * plane + inside.y * width + inside.x], band)) };
    if (payload.spread) {
      const codes = await unpack(payload.spread, width);
      spectrum.spread = offset.map((_, band) => {
        const code = codes[band * plane + inside.y * width + inside.x];
        return code === NODATA ? null : this.facts.spread_step * code;
      });
    }
    if (!payload.low) return spectrum;
    const outer = columns + 2 * reach;
    const low = await unpack(payload.low, outer);
    const gaps = await unpack(payload.gaps, columns);
    const padded = (rows + 2 * reach) * outer;
    const place = { y: row - down * block, x: column - over * block };
    const gap = (band) => gaps[(band * rows + place.y) * columns + place.x];
    const at = (band, dy, dx) => value(low[band * padded + (place.y + dy) * outer + place.x + dx], band);
    spectrum.low = offset.map((_, band) => (gap(band) ? null : at(band, reach, reach)));
    spectrum.bicubic = offset.map((_, band) => {
      if (gap(band)) return null;
      let sum = 0;
      for (let dy = 0; dy <= 2 * reach; dy += 1) {
        for (let dx = 0; dx <= 2 * reach; dx += 1) {
          sum += this.#weight(y % scale, dy) * this.#weight(x % scale, dx) * at(band, dy, dx);
        }
      }
      return sum;
    });
    return spectrum;
  }

  #weight(phase, tap) {
    const { scale, kernel, reach } = this.facts;
    return kernel[phase + scale * (2 * reach - tap)];
  }
}

function decode(codes, offset, step) {
  return Float32Array.from(codes, (code) => (code === NODATA ? NaN : offset + step * code));
}

/** One HR value along an axis: the pattern of every LR pixel in reach, as `Spread` lays it. */
function weighted(values, first, stride, kernel, phase, scale, reach) {
  let sum = 0;
  for (let tap = 0; tap <= 2 * reach; tap += 1) {
    sum += kernel[phase + scale * (2 * reach - tap)] * values[first + tap * stride];
  }
  return sum;
}

/** The part of the sorted finite values below which `share` of them lie. */
export function quantile(values, share) {
  const sorted = Float64Array.from(values.filter(Number.isFinite)).sort();
  if (!sorted.length) return 0;
  const place = share * (sorted.length - 1);
  const [low, high] = [Math.floor(place), Math.ceil(place)];
  return sorted[low] + (place - low) * (sorted[high] - sorted[low]);
}
