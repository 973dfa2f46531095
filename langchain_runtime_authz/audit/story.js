"use strict";
const all = (css) => [...document.querySelectorAll(css)];
const filters = document.querySelector("fieldset");
const marks = all(".mark"), rows = all("tr.k");
const why = document.getElementById("why");
const open = (id) => {
  const row = document.getElementById(id);
  if (row) why.textContent = `${row.querySelector("summary").textContent}\n\n${row.querySelector("pre").textContent}`;
};
const rove = (mark) => { marks.forEach((m) => m.setAttribute("tabindex", m === mark ? 0 : -1)); };
const show = () => {
  const kinds = new Set(all("fieldset input:checked").map((i) => i.value));
  const lane = filters.querySelector("select").value, text = filters.querySelector("[type=search]").value.toLowerCase();
  const hidden = new Set();
  rows.forEach((row) => {
    row.hidden = !kinds.has(row.dataset.k) || (lane && row.dataset.l !== lane) || !row.textContent.toLowerCase().includes(text);
    if (row.hidden) hidden.add(row.id);
  });
  marks.forEach((m) => m.toggleAttribute("hidden", hidden.has(m.getAttribute("href").slice(1))));
  rove(marks.find((m) => !m.hasAttribute("hidden")));
  document.querySelector("output").textContent = `${rows.length - hidden.size} of ${rows.length} steps`;
};
marks.forEach((mark) => {
  mark.addEventListener("click", (event) => { event.preventDefault(); rove(mark); open(mark.getAttribute("href").slice(1)); });
  mark.addEventListener("keydown", (event) => {
    const seen = marks.filter((m) => !m.hasAttribute("hidden")), at = seen.indexOf(mark);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: seen.length - 1 }[event.key];
    if (to === undefined || !seen[to]) return;
    event.preventDefault(); rove(seen[to]); seen[to].focus();
  });
});
if (filters) { filters.hidden = false; filters.addEventListener("input", show); show(); }
open(location.hash.slice(1));
