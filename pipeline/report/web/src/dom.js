// Text from outputs is untrusted: it becomes text nodes and nothing else.

/** An element; attributes that are functions listen to the event of their name. */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** A command or code with a button that copies it. */
export function copyable(text, what) {
  const said = make("span", { role: "status", class: "quiet" });
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      said.textContent = "copied";
    } catch {
      said.textContent = "select the text to copy it";
    }
  };
  return make(
    "div",
    { class: "copyable" },
    make("pre", { tabindex: "0", "aria-label": what }, make("code", {}, text)),
    make("button", { type: "button", click: copy, "aria-label": `Copy ${what}` }, "Copy"),
    said,
  );
}

export const percent = (part) => (typeof part === "number" ? `${(100 * part).toFixed(2)} %` : "");

/** A few significant digits, as people write them. */
export function figure(value, digits = 4) {
  if (typeof value !== "number" || !Number.isFinite(value)) return "";
  return String(Number(value.toPrecision(digits)));
}

/** Show an error instead of a page that stays empty. */
export function fail(error) {
  const place = byId("problem");
  place.hidden = false;
  place.textContent = `This page cannot be shown: ${error.message}`;
}
