"use strict";
// Tables are sorted by buttons in their heads: upwards, downwards, as they were. What is no number stays at the end.
for (const table of document.querySelectorAll("main table")) {
  const [body] = table.tBodies, given = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const next = { null: "ascending", ascending: "descending", descending: null };
  const sorted = (column, sign) => {
    const text = (row) => row.cells[column].textContent.trim(), missing = (row) => ["", "-", "n/a"].includes(text(row));
    const known = given.filter((row) => !missing(row));
    const numeric = known.every((row) => !Number.isNaN(parseFloat(text(row))));
    const words = new Intl.Collator("en", { numeric: true });
    known.sort((a, b) => sign * (numeric ? parseFloat(text(a)) - parseFloat(text(b)) : words.compare(text(a), text(b))));
    return [...known, ...given.filter(missing)];
  };
  heads.forEach((head, column) => {
    if (head.textContent.trim() === "") return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const way = next[head.getAttribute("aria-sort")];
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (way) head.setAttribute("aria-sort", way);
      body.append(...(way ? sorted(column, way === "ascending" ? 1 : -1) : given));
    });
  });
}

// Curves say their numbers: under the pointer, or under a line that the arrow keys move.
const made = (parent, name, text = "", kind = "") => {
  const element = document.createElement(name);
  element.textContent = text;
  element.className = kind;
  parent.append(element);
  return element;
};
const panels = JSON.parse(document.getElementById("numbers")?.textContent ?? "[]");
document.querySelectorAll(".plot").forEach((plot, index) => {
  const { words, frame: [left, top, right, bottom], limits: [low, high], rows } = panels[index];
  const stops = [...new Set(rows.flatMap((row) => row.x))].sort((a, b) => a - b);
  if (stops.length === 0) return;
  const place = (x) => left + ((x - low) / (high - low)) * (right - left);
  const cross = made(plot, "div", "", "cross"), tip = made(plot, "div", "", "tip");
  tip.setAttribute("aria-live", "polite");
  cross.style = `top: ${100 * top}%; height: ${100 * (bottom - top)}%`;
  plot.tabIndex = 0;
  plot.setAttribute("role", "group");
  plot.setAttribute("aria-label", `${plot.dataset.title}; arrow keys read the numbers`);
  let at = -1;
  const hide = () => (cross.hidden = tip.hidden = true);
  hide();
  const show = (stop) => {
    const x = stops[(at = Math.max(0, Math.min(stop, stops.length - 1)))], after = place(x) > 0.5;
    tip.replaceChildren();
    made(tip, "b", words.replace("#", Math.round(x).toLocaleString("en")));
    const lines = made(made(tip, "table"), "tbody");
    for (const row of rows) {
      if (x > row.x.at(-1) || x < row.x[0]) continue;
      const line = made(lines, "tr"), chip = document.getElementById("rows").children[row.look].firstElementChild;
      made(line, "td").append(chip.cloneNode(true), row.name);
      made(line, "td", row.y[row.x.findLastIndex((reached) => reached <= x)]);
    }
    cross.style.left = `${100 * place(x)}%`;
    tip.style = after ? `right: calc(${100 * (1 - place(x))}% + .5rem)` : `left: calc(${100 * place(x)}% + .5rem)`;
    cross.hidden = tip.hidden = false;
  };
  const point = (event) => {
    const box = plot.getBoundingClientRect(), across = (event.clientX - box.left) / box.width;
    const off = stops.map((x) => Math.abs(place(x) - across));
    show(off.indexOf(Math.min(...off)));
  };
  for (const name of ["pointermove", "pointerdown"]) plot.addEventListener(name, point);
  plot.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") hide();
    if (step) event.preventDefault(), show(at + step);
  });
});
