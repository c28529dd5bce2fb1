"use strict";
// What is folded is packed text in the page; it becomes part of it when it is opened. Nothing is loaded.
const unpack = async (node) => {
  const bytes = Uint8Array.from(atob(node.textContent.trim()), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
};
const fill = async (box) => {
  const held = box.querySelector(":scope > script");
  if (!held || box.dataset.busy) return;
  box.dataset.busy = "yes";
  const part = document.createElement("div");
  try {
    const text = await unpack(held);
    if (box.id === "runs") browse(part, JSON.parse(text));
    else part.innerHTML = text;
    held.replaceWith(part);
  } catch {
    part.textContent = "This browser cannot unpack this part. Its tables are files in tables/ beside the page.";
    held.before(part);
  }
  for (const inner of part.querySelectorAll("details")) inner.addEventListener("toggle", stops);
  still(part);
  stops();
};
for (const box of document.querySelectorAll("details.fill")) {
  box.addEventListener("toggle", () => box.open && fill(box));
  if (box.open) fill(box);
}
// Sorting: a click or Enter on a heading; again for the other direction. Cells without a value stay last.
const sort = (button) => {
  const head = button.closest("th");
  const table = head.closest("table");
  const at = [...head.parentNode.children].indexOf(head);
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const value = (row) => {
    let column = 0;
    for (const cell of row.children) {
      column += cell.colSpan;
      if (column > at) {
        const text = cell.dataset.sort ?? (cell.classList.contains("num") ? "" : cell.textContent.trim());
        return text === "" || text === "–" ? null : text;
      }
    }
    return null;
  };
  const rows = [...table.tBodies[0].rows].map((row, place) => [value(row), place, row]);
  const numeric = rows.every(([v]) => v === null || !Number.isNaN(Number(v)));
  rows.sort(([a, i], [b, j]) => {
    if (a === null || b === null) return (a === null) - (b === null) || i - j;
    const order = numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
    return (up ? order : -order) || i - j;
  });
  table.tBodies[0].append(...rows.map(([, , row]) => row));
};
// Copying: the clipboard where the browser allows it, else a selection.
const copy = async (button) => {
  const box = button.closest(".tools");
  const source = box.querySelector(`[data-source="${button.dataset.copy}"]`);
  let done = false;
  try {
    await navigator.clipboard.writeText(source.value);
    done = true;
  } catch {
    source.hidden = false;
    source.select();
    done = document.execCommand("copy");
    source.hidden = done;
    if (done) button.focus();
  }
  box.querySelector(".said").textContent = done ? `${button.textContent} copied` : "Press Ctrl+C to copy";
};
document.addEventListener("click", ({ target }) => {
  const button = target.closest("button");
  if (button?.classList.contains("sort")) sort(button);
  else if (button?.dataset.copy) copy(button);
});
// Paper shows what is open, and the folded parts of the first screen.
const opened = [];
addEventListener("beforeprint", () => {
  for (const box of document.querySelectorAll("details.paper:not([open])")) {
    box.open = true;
    opened.push(box);
  }
});
addEventListener("afterprint", () => {
  for (const box of opened.splice(0)) box.open = false;
});
// A link to something folded opens it.
const unfold = () => {
  const name = decodeURIComponent(location.hash.slice(1));
  if (name.startsWith("run-")) document.getElementById("runs").open = true;
  const target = name && document.getElementById(name);
  for (let box = target || null; box; box = box.parentElement) if (box.tagName === "DETAILS") box.open = true;
};
addEventListener("hashchange", unfold);
unfold();
// What needs no scrolling is no stop for the keyboard.
function stops() {
  for (const box of document.querySelectorAll(".scroll")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
addEventListener("resize", stops);
for (const box of document.querySelectorAll("details")) box.addEventListener("toggle", stops);
stops();
// Moving pictures stand still where the reader asked for less motion, until pressed.
function still(part) {
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  for (const image of part.querySelectorAll('img[src^="data:image/gif"]')) {
    const stop = async () => {
      await image.decode();
      const canvas = document.createElement("canvas");
      canvas.width = image.naturalWidth;
      canvas.height = image.naturalHeight;
      canvas.getContext("2d").drawImage(image, 0, 0);
      const button = document.createElement("button");
      const moving = image.src;
      button.type = "button";
      button.textContent = "Play";
      button.addEventListener("click", () => {
        image.src = moving;
        button.remove();
      });
      image.src = canvas.toDataURL();
      image.after(button);
    };
    stop().catch(() => {});
  }
}
// Every run: filters, a list, and one run with its numbers, curve, configuration and command. All text is set as text.
function make(tag, options = {}, ...children) {
  const node = Object.assign(document.createElement(tag), options);
  node.append(...children);
  return node;
}
function browse(part, { runs, left, pairs, environments, notes }) {
  const SHOWN = 50;
  const filters = make("div", { className: "filters" });
  const choices = {};
  for (const key of ["task", "data", "protocol", "method", "loss", "status"]) {
    const values = [...new Set(runs.map((run) => run[key]))].sort();
    if (values.length < 2) continue;
    choices[key] = make("select", {}, make("option", { value: "", textContent: "all" }));
    for (const value of values) choices[key].append(make("option", { value, textContent: value }));
    filters.append(make("label", {}, `${key} `, choices[key]));
  }
  const words = make("input", { type: "search", size: 16 });
  filters.append(make("label", {}, "contains ", words));
  const said = make("p", { className: "small", role: "status" });
  const body = make("tbody");
  const heads = ["run", "task", "data", "method", "loss", "setting", "seed", "result", "status"];
  const list = make("table", { className: "list-of-runs" },
    make("thead", {}, make("tr", {}, ...heads.map((textContent) => make("th", { scope: "col", textContent })))), body);
  const pane = make("section", { className: "run", tabIndex: -1 });
  let most = SHOWN;
  const more = make("button", { type: "button", textContent: "Show more" });
  const show = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = runs.filter((run) => Object.entries(choices).every(([key, { value }]) => !value || run[key] === value)
      && wanted.every((word) => JSON.stringify(Object.values(run).slice(0, 14)).toLowerCase().includes(word)));
    body.replaceChildren(...kept.slice(0, most).map((run) => make("tr", {},
      make("th", { scope: "row" }, make("a", { href: `#run-${run.id}`, textContent: run.id })),
      ...["task", "data", "method", "loss", "setting", "seed"].map((key) =>
        make("td", { textContent: run[key], className: ["task", "setting"].includes(key) ? "text" : "" })),
      make("td", { textContent: `${run.metric} ${run.value}` }), make("td", { textContent: run.status }))));
    more.hidden = kept.length <= most;
    said.textContent = `${Math.min(most, kept.length)} of ${kept.length} runs`
      + (left ? `; ${left} more are in tables/runs.csv` : "");
  };
  filters.addEventListener("input", () => {
    most = SHOWN;
    show();
  });
  more.addEventListener("click", () => {
    most += 4 * SHOWN;
    show();
  });
  const facts = (items) => make("dl", { className: "facts small" }, ...items.map(([key, value]) =>
    make("div", {}, make("dt", { textContent: key }), make("dd", { textContent: value }))));
  const folded = (title, node) => make("details", {}, make("summary", { textContent: title }), node);
  const lines = (texts) => make("ul", { className: "list" }, ...texts.map((text) => make("li", { textContent: text })));
  const pick = () => {
    const run = runs.find(({ id }) => location.hash === `#run-${id}`);
    if (!run) return;
    const source = make("textarea", { hidden: true, readOnly: true, tabIndex: -1, value: run.command });
    source.dataset.source = "command";
    const button = make("button", { type: "button", textContent: "Command" });
    button.dataset.copy = "command";
    pane.replaceChildren(
      make("h3", { textContent: `${run.method} + ${run.loss} on ${run.data}, seed ${run.seed}` }),
      make("p", { className: "protocol",
        textContent: [run.task, run.model, run.protocol, run.setting, run.status].filter(Boolean).join(" · ") }),
      make("pre", { tabIndex: 0, textContent: run.command || "no command recorded" }),
      make("div", { className: "tools" }, "Copy ", button, source, make("span", { className: "said", role: "status" })),
      facts(run.numbers));
    if (run.curve) pane.append(plot(run.curve));
    if (run.flags.length) pane.append(make("h4", { textContent: "Flags" }), lines(run.flags));
    if (run.slices.length > 1) pane.append(folded(`${run.metric} of each slice (${run.slices.length})`, facts(run.slices)));
    pane.append(folded("Configuration", facts(run.config.map((at) => pairs[at]))),
      folded("Environment", facts(environments[run.environment])));
    if (run.notes.length) pane.append(folded(`Notes (${run.notes.length})`, lines(run.notes.map((at) => notes[at]))));
    pane.scrollIntoView({ block: "nearest" });
    pane.focus({ preventScroll: true });
  };
  addEventListener("hashchange", pick);
  part.append(filters, pane, said, make("div", { className: "scroll" }, list), more);
  show();
  setTimeout(pick);
}
function plot({ x, y, title, what }) {
  const space = make("div", { innerHTML: "<svg></svg>" }).firstChild.namespaceURI;
  const draw = (tag, attributes, text) => {
    const node = document.createElementNS(space, tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const [wide, high, edge] = [460, 170, 44];
  const [low, top] = [Math.min(...y), Math.max(...y)];
  const [first, last] = [Math.min(...x), Math.max(...x)];
  const at = (i) => [edge + (wide - edge - 8) * (x[i] - first) / (last - first || 1),
    high - 30 - (high - 44) * (y[i] - low) / (top - low || 1)];
  const svg = draw("svg", { viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": `${title} against ${what}` });
  svg.append(draw("polyline", { points: x.map((_, i) => at(i).map((v) => v.toFixed(1)).join(",")).join(" "),
    fill: "none", stroke: "currentColor", "stroke-width": 1.5 }));
  for (const [value, i] of [[low, y.indexOf(low)], [top, y.indexOf(top)]]) {
    svg.append(draw("text", { x: edge - 6, y: at(i)[1] + 3, "text-anchor": "end" }, value));
  }
  svg.append(draw("text", { x: edge, y: high - 12 }, first),
    draw("text", { x: wide - 8, y: high - 12, "text-anchor": "end" }, last),
    draw("text", { x: wide / 2, y: high - 12, "text-anchor": "middle" }, what),
    draw("text", { x: edge, y: 10 }, title));
  return make("div", { className: "curve" }, svg);
}
