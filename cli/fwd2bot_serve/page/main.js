// Puts the parts together: what is searched for, what is shown, and the keys.

import { get, post } from "./api.js";
import { Ask } from "./ask.js";
import { $, fileName } from "./dom.js";
import * as faces from "./faces.js";
import { Filters } from "./filters.js";
import { foundWords, Grid, PAGE } from "./grid.js";
import { Picture } from "./picture.js";
import { Status } from "./status.js";
import { Terms, weighted } from "./terms.js";

let searching = null; // the request under way
let stopWaiting = () => {};
let asked = null; // what the pictures of the grid were found by; the fields may say something else by now
let page = 0;
let loading = null; // the page under way
const AHEAD = 12; // pictures before the last one, from where a walk asks for more

const grid = new Grid({ more, open: (i) => picture.show(grid.pictures[i]), selected: () => ask?.show() });
const terms = new Terms(search, (sentence) => { $("refused").textContent = sentence; });
const filters = new Filters(search);
const picture = new Picture({ hasNeighbour, neighbour, like });
const ask = new Ask(grid, (shown) => picture.show(shown));
const status = new Status({ grown: search, changed: columns });

// ---- searching

async function search({ push = true } = {}) {
  asked = { terms: terms.toJson(), where: filters.where, ...filters.options };
  remember(push);
  searching?.abort();
  searching = new AbortController();
  page = 0;
  loading = null;
  ask.forget();
  grid.clear();
  grid.wait();
  faces.hide();
  $("found").textContent = "";
  ask.show();
  window.scrollTo({ top: 0 });
  await more();
}

/** The next page; all who ask while it is under way wait for the same. */
function more() {
  if (loading) return loading;
  const mine = (loading = nextPage());
  return mine.finally(() => { if (loading === mine) loading = null; });
}

async function nextPage() {
  stopWaiting();
  const { signal } = searching;
  try {
    const pictures = await found(page + 1, signal);
    if (signal.aborted) return;
    page += 1;
    const complete = pictures.length < PAGE;
    grid.add(pictures, { complete });
    faces.hide();
    if (!grid.pictures.length) nothing();
    $("found").textContent = foundWords(grid.pictures.length, complete, { searched: asked.terms.length > 0, filtered: Boolean(asked.where) });
    if (page === 1) status.upToDate(grid.pictures.length);
    ask.show();
  } catch (error) {
    if (error.name === "AbortError" || signal.aborted) return;
    grid.complete = true;
    if (!grid.pictures.length) grid.clear();
    stopWaiting = faces.showError(error, page ? more : search, login);
  }
}

async function found(number, signal) {
  const which = { top: PAGE, page: number };
  if (!asked.terms.length) return (await get("pictures", { ...which, where: asked.where }, signal)).pictures;
  return (await post("search", { ...which, ...asked }, signal)).hits;
}

function nothing() {
  grid.clear();
  if (asked.where) faces.show("nothing", "Nothing was found", "No picture fulfils these filters.", reset());
  else if (!asked.terms.length) stopWaiting = faces.showError({ kind: "empty" }, search, login);
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

/** Of the picture that is shown, in the grid; -1: it is not there. */
function place() {
  const at = grid.pictures.indexOf(picture.shown); // first, as files with the same bytes share an id
  return at < 0 ? grid.pictures.findIndex((one) => one.id === picture.shown?.id) : at;
}

function hasNeighbour(by) {
  const at = place();
  return at >= 0 && (at + by in grid.pictures || (by > 0 && !grid.complete));
}

async function neighbour(by) {
  const at = place();
  if (at < 0) return undefined;
  if (at + by > grid.pictures.length - AHEAD && !grid.complete) more();
  while (at + by >= grid.pictures.length && !grid.complete) await more();
  return grid.pictures[at + by];
}

async function columns() {
  try {
    filters.offer((await get("columns")).columns);
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

/** `push`: as a new entry of the history. An address that was come by, spelled in another way, is only spelled anew:
    pushed, it would be in the way of who goes back. */
function remember(push) {
  const said = new URLSearchParams();
  for (const { text, like, weight } of asked.terms) {
    const key = text ? "query" : like ? "like" : null;
    const what = text ?? like;
    if (key) said.append(key, weight === 1 && weighted(what).what === what ? what : `${what}^${weight}`);
  }
  const address = said.size ? `#${said}` : "#";
  if (location.hash !== address && (location.hash || said.size)) history[push ? "pushState" : "replaceState"](null, "", address);
  const first = asked.terms.find((term) => term.text);
  document.title = first ? `${first.text} – fwd2bot` : "fwd2bot";
}

function recall() {
  const said = new URLSearchParams(location.hash.slice(1));
  terms.clear();
  for (const [key, value] of said) {
    if (!value) continue;
    const { what, weight } = weighted(value);
    if (key === "like") terms.list.push({ like: what, name: what.slice(0, 6), weight });
    if (key === "query") terms.list.push({ text: what, weight });
  }
  const [only] = terms.list;
  if (terms.list.length === 1 && only.text && only.weight === 1 && weighted(only.text).what === only.text) $("words").value = terms.list.pop().text;
  terms.show();
  $("add").hidden = !$("words").value.trim();
}

// ---- hands

$("search").addEventListener("submit", (event) => { event.preventDefault(); terms.refused(""); search(); if (matchMedia("(pointer: coarse)").matches) $("words").blur(); });
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

const closeDialogs = () => { for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close(); };
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
  closeDialogs();
  await terms.addFiles(pictured(event.dataTransfer));
});
addEventListener("paste", async (event) => {
  const files = pictured(event.clipboardData);
  if (!files.length) return;
  event.preventDefault();
  closeDialogs();
  await terms.addFiles(files);
});
addEventListener("popstate", () => { closeDialogs(); recall(); search({ push: false }); });

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
  search({ push: false });
}

const called = new URLSearchParams(location.hash.slice(1));
const given = called.get("token");
if (given) {
  called.delete("token");
  history.replaceState(null, "", `#${called}`);
  login(given);
} else start();
if (matchMedia("(pointer: fine)").matches) $("words").focus();
