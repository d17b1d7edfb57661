
"use strict";

// Tables: the head of a column sorts it, numbers as numbers, gaps last.
function sort(head) {
  const table = head.closest("table");
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const place = heads.indexOf(head);
  const numeric = head.classList.contains("n");
  const falling = head.ariaSort === "none" ? numeric : head.ariaSort === "ascending";
  for (const other of table.querySelectorAll("th[aria-sort]")) other.ariaSort = "none";
  head.ariaSort = falling ? "descending" : "ascending";
  const key = (row) => row.cells[place].dataset.v;
  const order = (a, b) => {
    const [left, right] = [key(a), key(b)];
    if (left === undefined || right === undefined) return (left === undefined) - (right === undefined);
    const by = numeric ? left - right : left.localeCompare(right, undefined, { numeric: true });
    return falling ? -by : by;
  };
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort(order));
}

// Plots: one method at a time stands out, in every plot and table.
let chosen = null;

function light(m) {
  document.body.classList.toggle("lit", m !== null);
  for (const shown of document.querySelectorAll(".on[data-m]")) shown.classList.remove("on");
  if (m === null) return;
  for (const shown of document.querySelectorAll(`g[data-m="${m}"], tr[data-m="${m}"]`)) shown.classList.add("on");
}

function read(item) {
  const out = item.closest("figure")?.querySelector(".readout");
  if (out) out.textContent = item.dataset.said ?? item.querySelector("title").textContent;
}

for (const head of document.querySelectorAll("th[aria-sort] button")) {
  head.addEventListener("click", () => sort(head.closest("th")));
}
for (const item of document.querySelectorAll(".plots [data-m]")) {
  const show = () => { light(item.dataset.m); read(item); };
  item.addEventListener("pointerenter", show);
  item.addEventListener("pointerleave", () => light(chosen));
  item.addEventListener("focus", show);
  item.addEventListener("blur", () => light(chosen));
  item.addEventListener("click", () => {
    chosen = chosen === item.dataset.m ? null : item.dataset.m;
    for (const button of document.querySelectorAll(".legend button")) {
      button.ariaPressed = String(button.dataset.m === chosen);
    }
    light(chosen);
    read(item);
  });
}
addEventListener("beforeprint", () => {
  for (const closed of document.querySelectorAll("details")) closed.open = true;
});
