"use strict";
const form = document.querySelector("form");
const rows = [...document.querySelectorAll("article")];
const told = document.querySelector("output");
form.hidden = false;
function filter() {
  const reason = form.reason.value, words = form.words.value.toLowerCase();
  let shown = 0;
  for (const row of rows) {
    const own = row.dataset.reason ?? "";
    const fits = reason === "all" || (reason === "kept" ? own === "" : reason === "rejected" ? own !== "" : own === reason.slice(1) || own.startsWith(reason.slice(1) + ":"));
    row.hidden = !(fits && row.textContent.toLowerCase().includes(words));
    shown += !row.hidden;
  }
  told.textContent = `${shown} of ${rows.length}`;
}
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, select") || !["j", "k"].includes(event.key)) return;
  const seen = rows.filter((row) => !row.hidden);
  const at = seen.findIndex((row) => row.getBoundingClientRect().top > 70 + (event.key === "j"));
  const to = event.key === "j" ? (at < 0 ? seen.length - 1 : at) : Math.max(0, (at < 0 ? seen.length : at) - 1);
  seen[to]?.scrollIntoView();
  window.scrollBy(0, -70);
});
filter();
