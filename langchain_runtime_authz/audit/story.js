"use strict";
const all = (css) => [...document.querySelectorAll(css)];
const filters = document.querySelector("fieldset");
const marks = all(".mark"), rows = all("tr.k");
const why = document.getElementById("why");
const made = (tag, into, properties) => into.appendChild(Object.assign(document.createElement(tag), properties));
made("legend", filters, { textContent: "Show" });
new Map(rows.map((row) => [row.dataset.k, row.querySelector(".w").textContent])).forEach((word, value) => {
  const label = made("label", filters);
  made("input", label, { type: "checkbox", value, checked: true });
  label.append(` ${word}`);
});
const agents = made("select", made("label", filters, { textContent: "Agent " }));
made("option", agents, { value: "", textContent: "all" });
const lanes = [...new Map(rows.map((row) => [Number(row.dataset.l), row.cells[1].textContent]))].sort((a, b) => a[0] - b[0]);
lanes.forEach(([value, textContent]) => made("option", agents, { value, textContent }));
const search = made("input", made("label", filters, { textContent: "Text " }), { type: "search" });
const count = made("output", filters);
const open = (id) => {
  const row = document.getElementById(id);
  if (row) why.textContent = `${row.querySelector("summary").textContent}\n\n${row.querySelector("pre").textContent}`;
};
const rove = (mark) => { marks.forEach((m) => m.setAttribute("tabindex", m === mark ? 0 : -1)); };
const show = () => {
  const kinds = new Set(all("fieldset input:checked").map((i) => i.value));
  const lane = agents.value, text = search.value.toLowerCase();
  const hidden = new Set();
  rows.forEach((row) => {
    row.hidden = !kinds.has(row.dataset.k) || (lane && row.dataset.l !== lane) || !row.textContent.toLowerCase().includes(text);
    if (row.hidden) hidden.add(row.id);
  });
  marks.forEach((m) => m.toggleAttribute("hidden", hidden.has(m.getAttribute("href").slice(1))));
  rove(marks.find((m) => !m.hasAttribute("hidden")));
  count.textContent = `${rows.length - hidden.size} of ${rows.length} steps`;
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
filters.hidden = false;
filters.addEventListener("input", show);
show();
open(location.hash.slice(1));
