// A table with search and sort: plain rows, which a browser shows by the thousand.
import { make } from "./dom.js";

/**
 * @param {object} parts table and search elements, and the element that says how many rows there are
 * @param {Array} columns of {title, value: row => comparable, cell: row => node or text, number}
 */
export function table(parts, columns, rows) {
  const body = make("tbody");
  const shown = rows.map((row) => ({
    row,
    text: columns.map((column) => String(column.value(row) ?? "")).join(" ").toLowerCase(),
    element: null,
  }));
  let order = { column: 0, down: false };

  const heads = columns.map((column, index) => {
    const sort = () => {
      order = { column: index, down: order.column === index && !order.down };
      draw();
    };
    const button = make("button", { type: "button", click: sort }, column.title);
    return make("th", { scope: "col", class: column.number ? "number" : undefined }, button);
  });

  function element(entry) {
    entry.element ??= make(
      "tr",
      {},
      ...columns.map((column, index) =>
        make(
          index ? "td" : "th",
          { class: column.number ? "number" : undefined, scope: index ? undefined : "row", "data-title": column.title, "data-short": column.short },
          column.cell(entry.row),
        ),
      ),
    );
    return entry.element;
  }

  function draw() {
    const words = parts.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = shown.filter((entry) => words.every((word) => entry.text.includes(word)));
    const { value } = columns[order.column];
    found.sort((one, other) => compare(value(one.row), value(other.row)) * (order.down ? -1 : 1));
    body.replaceChildren(...found.map(element));
    heads.forEach((head, index) => {
      const direction = order.down ? "descending" : "ascending";
      head.setAttribute("aria-sort", index === order.column ? direction : "none");
    });
    parts.count.textContent = `${found.length} of ${rows.length}`;
  }

  parts.table.append(make("thead", {}, make("tr", {}, ...heads)), body);
  parts.search.addEventListener("input", draw);
  draw();
}

/** What is absent comes last upwards. */
function compare(one, other) {
  if (one === other) return 0;
  if (one === null || one === undefined || one === "") return 1;
  if (other === null || other === undefined || other === "") return -1;
  if (typeof one === "number" && typeof other === "number") return one - other;
  return String(one).localeCompare(String(other), "en", { numeric: true });
}
