// The pictures: more come as one scrolls, and the arrow keys go from one to the next.

import { request, thumbnail } from "./api.js";
import { $, count, fileName, h, percent } from "./dom.js";

export const PAGE = 48;

export class Grid {
  constructor({ more, open, selected }) {
    this.pictures = []; // as the server tells them
    this.selection = new Set(); // ids
    this.paths = new Set();
    this.figures = new Map(); // id -> figure
    this.complete = true;
    this.open = open;
    this.selected = selected;
    this.end = new IntersectionObserver((seen) => { if (seen.some((one) => one.isIntersecting) && !this.complete) more(); }, { rootMargin: "1200px" });
  }

  get first() {
    return $("grid").querySelector("figure > button");
  }

  clear() {
    this.pictures = [];
    this.paths.clear();
    this.figures.clear();
    this.select([]);
    this.complete = true;
    $("grid").replaceChildren();
  }

  /** Empty frames, until the first pictures are there. */
  wait() {
    $("grid").replaceChildren(...Array.from({ length: 12 }, () => h("div.hole")));
    $("grid").setAttribute("aria-busy", "true");
  }

  add(pictures, { complete }) {
    if (!this.pictures.length) $("grid").replaceChildren();
    $("grid").removeAttribute("aria-busy");
    this.complete = complete;
    for (const picture of pictures) {
      if (this.paths.has(picture.path)) continue; // what was indexed meanwhile has moved it to the next page
      this.paths.add(picture.path);
      const figure = this.#figure(picture);
      this.pictures.push(picture);
      if (!this.figures.has(picture.id)) this.figures.set(picture.id, figure);
      $("grid").append(figure);
    }
    this.end.unobserve($("end")); // it tells of changes only: an end that is still near must be told of again
    this.end.observe($("end"));
  }

  #figure(picture) {
    const name = fileName(picture.path);
    const ratio = Math.min(3, Math.max(0.5, picture.width / picture.height || 1));
    const img = h("img", { loading: "lazy", decoding: "async", alt: name, sizes: "(max-width: 46rem) 50vw, 20rem",
      srcset: `${thumbnail(picture.id, 320)} 320w, ${thumbnail(picture.id, 640)} 640w`, src: thumbnail(picture.id, 320),
      onload: () => img.classList.add("there"), onerror: () => lost(img, figure) });
    const box = h("input", { type: "checkbox", tabIndex: -1, "aria-label": `Select ${name}`, onchange: () => this.#toggle(picture.id, box.checked) });
    const figure = h("figure", { role: "listitem" },
      h("button", { type: "button", "aria-label": `Open ${name}`, onclick: () => this.open(this.pictures.indexOf(picture)) }, img),
      h("label.pick", {}, box),
      h("figcaption", {}, h("span", {}, name), h("span", { title: "Cosine; standard deviations above the corpus's mean" }, scored(picture))));
    figure.style.setProperty("--ratio", ratio);
    figure.dataset.id = picture.id;
    return figure;
  }

  // ---- selecting

  select(ids) {
    this.selection = new Set(ids);
    for (const figure of $("grid").querySelectorAll("figure")) {
      const chosen = this.selection.has(figure.dataset.id);
      figure.classList.toggle("selected", chosen);
      figure.querySelector("input").checked = chosen;
    }
    document.body.classList.toggle("selecting", this.selection.size > 0);
    this.selected();
  }

  #toggle(id, chosen) {
    const ids = new Set(this.selection);
    if (chosen) ids.add(id);
    else ids.delete(id);
    this.select(ids);
  }

  // ---- what was answered

  forget() {
    for (const figure of $("grid").querySelectorAll("figure")) {
      figure.classList.remove("asked", "asking", "rests");
      figure.querySelector(".said")?.remove();
    }
  }

  say(id, answer, confidence) {
    const figure = this.figures.get(id);
    if (!figure) return;
    figure.querySelector(".said")?.remove();
    figure.classList.toggle("asking", answer === null);
    figure.classList.add("asked");
    figure.append(h("p.said", {}, h("span", {}, answer ?? "…"), answer === null ? null : h("small", { title: "How likely the model finds it" }, percent(confidence))));
  }

  mark(ids) {
    for (const id of ids) this.figures.get(id)?.classList.add("rests");
  }

  // ---- keys

  /** Whether the key was one of the grid's. */
  key(event) {
    const buttons = [...$("grid").querySelectorAll("figure > button")];
    const at = buttons.indexOf(document.activeElement);
    if (at < 0) {
      if (event.key === "ArrowDown" && buttons.length) {
        focus(buttons[0]);
        return true;
      }
      return false;
    }
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: buttons.length - 1 }[event.key] ?? vertical(buttons, at, event.key);
    if (next === undefined) {
      const picture = this.pictures[at];
      if (event.key !== " " && event.key !== "x") return false;
      this.#toggle(picture.id, !this.selection.has(picture.id));
      return true;
    }
    if (next < 0) $("words").focus();
    else if (buttons[next]) focus(buttons[next]);
    return true;
  }

  get focused() {
    const figure = document.activeElement?.closest("figure");
    return figure ? this.pictures.find((picture) => picture.id === figure.dataset.id) : null;
  }
}

/** In the place of an image that did not come: why, and a way to ask again, unless there is nothing to be had. */
export async function lost(img, place) {
  img.hidden = true;
  const refused = await request(img.currentSrc || img.src).then(() => null, (error) => error); // an image does not tell why
  const again = () => { told.remove(); img.hidden = false; img.src = img.src; /* loads it anew */ };
  const told = h("p.lost", {}, refused?.message ?? "The picture did not come.",
    refused?.kind === "not-found" ? null : h("button.plain", { type: "button", onclick: again }, "Try again"));
  place.append(told);
}

export function scored(picture) {
  if (picture.match !== null && picture.match !== undefined) return `fits ${percent(picture.match)}`;
  if (picture.z === null || picture.z === undefined) return "";
  return `${picture.score.toFixed(2)} · z ${picture.z.toFixed(1)}`;
}

/** What stands above the pictures. */
export function foundWords(n, complete, { searched, filtered }) {
  if (!n) return "";
  if (searched) return complete ? `${count(n, "picture")}, the best first` : "The best first";
  return complete && filtered ? `${count(n, "picture")}, the newest first` : "The newest first";
}

function focus(button) {
  button.focus();
  button.scrollIntoView({ block: "nearest" });
}

/** The one above or below that is nearest. */
function vertical(buttons, at, key) {
  if (key !== "ArrowUp" && key !== "ArrowDown") return undefined;
  const place = (button) => button.getBoundingClientRect();
  const from = place(buttons[at]);
  const middle = from.left + from.width / 2;
  const down = key === "ArrowDown";
  let best = down ? at : -1;
  let least = Infinity;
  for (const [i, button] of buttons.entries()) {
    const to = place(button);
    const rows = down ? to.top - from.bottom : from.top - to.bottom;
    if (rows < 0) continue;
    const apart = rows * 10 + Math.abs(to.left + to.width / 2 - middle);
    if (apart < least) [best, least] = [i, apart];
  }
  return best;
}
