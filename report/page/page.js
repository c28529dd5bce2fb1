"use strict";
// Sorting: a click or Enter on a heading; again for the other direction. Cells without a value stay last.
for (const button of document.querySelectorAll(".sort")) {
  button.addEventListener("click", () => {
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
  });
}
// Copying: the clipboard where the browser allows it, else a selection.
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
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
  });
}
// Printing shows what is folded; a link to something folded opens it.
const opened = [];
addEventListener("beforeprint", () => {
  for (const box of document.querySelectorAll("details:not([open])")) {
    box.open = true;
    opened.push(box);
  }
});
addEventListener("afterprint", () => {
  for (const box of opened.splice(0)) box.open = false;
});
const unfold = () => {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let box = target || null; box; box = box.parentElement) if (box.tagName === "DETAILS") box.open = true;
};
addEventListener("hashchange", unfold);
unfold();
// What needs no scrolling is no stop for the keyboard.
const stops = () => {
  for (const box of document.querySelectorAll(".scroll")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
};
addEventListener("resize", stops);
for (const box of document.querySelectorAll("details")) box.addEventListener("toggle", stops);
stops();
// Moving pictures stand still where the reader asked for less motion, until pressed.
if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
  for (const image of document.querySelectorAll('img[src^="data:image/gif"]')) {
    const still = async () => {
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
    still().catch(() => {});
  }
}
