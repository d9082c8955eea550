// Data comes as scripts, the only files that a page opened from a disk may load.
const waiting = new Map();

globalThis.srReceive = (name, payload) => waiting.get(name)?.(payload);

/** The payload of the script at `path`, which hands it over as `name`. */
export function receive(path, name = path.replace(/\.js$/, "")) {
  return new Promise((resolve, reject) => {
    const element = document.createElement("script");
    let payload;
    waiting.set(name, (value) => {
      payload = value;
    });
    const end = (settle, value) => {
      waiting.delete(name);
      element.remove();
      settle(value);
    };
    element.onload = () => {
      if (payload === undefined) end(reject, new Error(`${path} holds no data`));
      else end(resolve, payload);
    };
    element.onerror = () => end(reject, new Error(`${path} cannot be loaded`));
    element.src = path;
    document.head.append(element);
  });
}

/** Like `receive`, once for each path. */
export function remembering(limit) {
  const known = new Map();
  return (path) => {
    const found = known.get(path) ?? receive(path);
    known.delete(path);
    known.set(path, found);
    found.catch(() => known.delete(path));
    if (known.size > limit) known.delete(known.keys().next().value);
    return found;
  };
}

async function inflated(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

export async function unpackJson(text) {
  return JSON.parse(new TextDecoder().decode(await inflated(text)));
}

/** Codes of 16 bits, rows of `width`: the inverse of `pack` in packing.py. */
export async function unpack(text, width) {
  const bytes = await inflated(text);
  const size = bytes.length / 2;
  const codes = new Uint16Array(size);
  for (let row = 0; row < size; row += width) {
    let value = 0;
    for (let index = row; index < row + width; index += 1) {
      value = (value + ((bytes[index] << 8) | bytes[size + index])) & 0xffff;
      codes[index] = value;
    }
  }
  return codes;
}
