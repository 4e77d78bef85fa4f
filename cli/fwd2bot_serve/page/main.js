// Puts the parts together: what is searched for, what is shown, and the keys.

import { get, post } from "./api.js";
import { Ask } from "./ask.js";
import { $, fileName } from "./dom.js";
import * as faces from "./faces.js";
import { Filters } from "./filters.js";
import { foundWords, Grid, PAGE } from "./grid.js";
import { Picture } from "./picture.js";
import { Status } from "./status.js";
import { Terms } from "./terms.js";

let searching = null; // the request under way
let stopWaiting = () => {};
let page = 0;
let loading = false;

const grid = new Grid({ more, open: (i) => picture.show(grid.pictures[i]), selected: () => ask?.show() });
const terms = new Terms(search, (sentence) => faces.show("error", "That did not work", sentence));
const filters = new Filters(search);
const picture = new Picture({ neighbour, like });
const ask = new Ask(grid, (shown) => picture.show(shown));
const status = new Status({ grown: search, changed: columns });

// ---- searching

async function search() {
  remember();
  searching?.abort();
  searching = new AbortController();
  stopWaiting();
  page = 0;
  loading = false;
  ask.forget();
  grid.clear();
  grid.wait();
  faces.hide();
  $("found").textContent = "";
  ask.show();
  window.scrollTo({ top: 0 });
  await more();
}

async function more() {
  if (loading) return;
  loading = true;
  const { signal } = searching;
  try {
    const pictures = await found(page + 1, signal);
    if (signal.aborted) return;
    page += 1;
    const complete = pictures.length < PAGE;
    grid.add(pictures, { complete });
    faces.hide();
    if (!grid.pictures.length) nothing();
    $("found").textContent = foundWords(grid.pictures.length, complete, { searched: !terms.isEmpty, filtered: Boolean(filters.where) });
    if (page === 1) status.upToDate(grid.pictures.length);
    ask.show();
  } catch (error) {
    if (error.name === "AbortError" || signal.aborted) return;
    grid.complete = true;
    if (!grid.pictures.length) grid.clear();
    stopWaiting = faces.showError(error, search, login);
  } finally {
    if (!signal.aborted) loading = false;
  }
}

async function found(number, signal) {
  if (terms.isEmpty) return (await get("pictures", { top: PAGE, page: number, where: filters.where }, signal)).pictures;
  const { diverse, collapse, rerank } = filters.options;
  const body = { terms: terms.toJson(), top: PAGE, page: number, where: filters.where, diverse, collapse, rerank };
  return (await post("search", body, signal)).hits;
}

function nothing() {
  grid.clear();
  if (filters.where) faces.show("nothing", "Nothing was found", "No picture fulfils these filters.", reset());
  else if (terms.isEmpty) stopWaiting = faces.showError({ kind: "empty" }, search, login);
  else faces.show("nothing", "Nothing was found", "Try other words.");
}

function reset() {
  const button = document.createElement("button");
  button.className = "plain";
  button.textContent = "Clear the filters";
  button.addEventListener("click", () => { filters.clear(); search(); });
  return button;
}

function like(shown, weight) {
  picture.close();
  const term = { like: shown.id, name: fileName(shown.path), weight };
  if (weight > 0) terms.set(term);
  else terms.add(term);
}

function neighbour(by) {
  let at = grid.pictures.indexOf(picture.shown); // first, as files with the same bytes share an id
  if (at < 0) at = grid.pictures.findIndex((one) => one.id === picture.shown?.id);
  return at < 0 ? undefined : grid.pictures[at + by];
}

async function columns() {
  if (filters.isOpen) return; // nobody's choice is taken away
  try {
    const before = JSON.stringify(filters.known ?? null);
    filters.known = (await get("columns")).columns;
    if (JSON.stringify(filters.known) !== before && !filters.where) filters.show(filters.known);
  } catch { /* the face of the search tells */ }
}

async function login(token) {
  try {
    await post("session", { token });
    start();
  } catch (error) {
    stopWaiting = faces.showError(error, search, login);
  }
}

// ---- the address: words and pictures of the index can be kept and sent

function remember() {
  const said = new URLSearchParams();
  for (const { text, like, weight } of terms.toJson()) {
    const key = text ? "query" : like ? "like" : null;
    if (key) said.append(key, weight === 1 ? text ?? like : `${text ?? like}^${weight}`);
  }
  const address = said.size ? `#${said}` : "#";
  if (location.hash !== address && (location.hash || said.size)) history.pushState(null, "", address);
  const first = terms.toJson().find((term) => term.text);
  document.title = first ? `${first.text} – fwd2bot` : "fwd2bot";
}

function recall() {
  const said = new URLSearchParams(location.hash.slice(1));
  terms.clear();
  for (const [key, value] of said) {
    const [, what, weight] = /^(.*?)(?:\^(-?[\d.]+))?$/s.exec(value);
    if (key === "like") terms.list.push({ like: what, name: what.slice(0, 6), weight: Number(weight ?? 1) });
    if (key === "query") terms.list.push({ text: what, weight: Number(weight ?? 1) });
  }
  if (terms.list.length === 1 && terms.list[0].text && terms.list[0].weight === 1) $("words").value = terms.list.pop().text;
  terms.show();
  $("add").hidden = !$("words").value.trim();
}

// ---- hands

$("search").addEventListener("submit", (event) => { event.preventDefault(); search(); if (matchMedia("(pointer: coarse)").matches) $("words").blur(); });
$("words").addEventListener("input", () => { $("add").hidden = !$("words").value.trim(); });
$("words").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.shiftKey) {
    event.preventDefault();
    terms.keepWords();
    $("add").hidden = true;
  } else if (event.key === "Backspace" && !$("words").value) terms.dropLast();
});
$("add").addEventListener("click", () => { terms.keepWords(); $("add").hidden = true; $("words").focus(); });
$("file").addEventListener("change", async () => { await terms.addFiles([...$("file").files]); $("file").value = ""; });
$("filter").addEventListener("click", () => filters.open(!filters.isOpen));
$("keys").addEventListener("click", () => $("help").showModal());

const pictured = (transfer) => [...(transfer?.files ?? [])];
const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
let dragged = 0;
addEventListener("dragenter", (event) => { if (hasFiles(event)) { dragged += 1; $("drop").hidden = false; } });
addEventListener("dragleave", () => { dragged = Math.max(0, dragged - 1); $("drop").hidden = dragged === 0; });
addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
addEventListener("drop", async (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  dragged = 0;
  $("drop").hidden = true;
  if ($("picture").open) picture.close();
  await terms.addFiles(pictured(event.dataTransfer));
});
addEventListener("paste", async (event) => {
  const files = pictured(event.clipboardData);
  if (!files.length) return;
  event.preventDefault();
  await terms.addFiles(files);
});
addEventListener("popstate", () => { recall(); search(); });

addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=checkbox]), select, textarea");
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if ($("picture").open) {
    if (typing) return;
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") picture.step(event.key === "ArrowRight" ? 1 : -1);
    else if (event.key === "l") like(picture.shown, 1);
    else if (event.key === "a") $("picture").querySelector(".ask input").focus();
    else return;
    event.preventDefault();
    return;
  }
  if ($("help").open) return;
  if (event.key === "Escape") {
    if (filters.isOpen) { filters.open(false); $("filter").focus(); }
    else if (grid.selection.size) grid.select([]);
    else if (typing) event.target.blur();
    else if (!$("answer").hidden) ask.forget();
    else if (!terms.isEmpty) { terms.clear(); search(); }
    return;
  }
  if (typing && !(event.target === $("words") && event.key === "ArrowDown")) return;
  const keys = {
    "/": () => { $("words").focus(); $("words").select(); },
    "?": () => $("help").showModal(),
    a: () => $("question").focus(),
    f: () => filters.open(!filters.isOpen),
    l: () => { if (grid.focused) like(grid.focused, 1); },
  };
  if (keys[event.key]) keys[event.key]();
  else if (!grid.key(event)) return;
  event.preventDefault();
});

// ---- the beginning

function start() {
  recall();
  status.look();
  columns();
  search();
}

const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  history.replaceState(null, "", "#");
  login(given);
} else start();
if (matchMedia("(pointer: fine)").matches) $("words").focus();
