// One picture: large, with what is known of it, what its tokens keep, others like it, and a box to ask about it.

import { get, lines, original, thumbnail } from "./api.js";
import { $, count, drawing, fileName, h, percent } from "./dom.js";
import { lost, scored } from "./grid.js";

const SIMILAR = 8;

export class Picture {
  constructor({ hasNeighbour, neighbour, like }) {
    this.hasNeighbour = hasNeighbour; // +1, -1 -> whether there may be one
    this.neighbour = neighbour; // +1, -1 -> the next picture or undefined, once it is there
    this.like = like; // (picture, weight): search with it
    this.shown = null;
    this.leaving = null;
    $("picture").addEventListener("close", () => { this.leaving?.abort(); this.shown = null; });
    $("picture").addEventListener("click", (event) => { if (event.target === $("picture")) this.close(); });
  }

  close() {
    $("picture").close();
  }

  async step(by) {
    const from = this.shown;
    const next = await this.neighbour(by);
    if (next && this.shown === from) this.show(next);
  }

  show(picture) {
    this.leaving?.abort();
    this.leaving = new AbortController();
    this.shown = picture;
    const { signal } = this.leaving;
    const name = fileName(picture.path);
    const dialog = $("picture");
    const held = dialog.contains(document.activeElement);
    const stepped = ["before", "after"].find((way) => dialog.querySelector(`.step.${way}:focus`));
    const kept = h("section.kept", {}, h("h3", {}, "What its tokens keep"), h("p.soft", {}, "…"));
    const similar = h("section", {}, h("h3", {}, "Similar"), h("div.similar"));
    const columns = h("section", {}, table(picture));
    dialog.replaceChildren(
      this.#view(picture, name),
      h("aside", {},
        h("div.title", {}, h("h2", {}, name), h("button.quiet", { type: "button", "aria-label": "Close", onclick: () => this.close() }, "×")),
        this.#ask(picture, signal),
        h("div.acts", {},
          h("button", { type: "button", onclick: () => this.like(picture, 1) }, "More like this"),
          h("button", { type: "button", onclick: () => this.like(picture, -1) }, "Less like this"),
          h("a", { href: original(picture.id), target: "_blank", rel: "noopener" }, "The file")),
        kept, similar, columns),
    );
    dialog.setAttribute("aria-label", name);
    if (!dialog.open) dialog.showModal();
    else if (held) (dialog.querySelector(`.step.${stepped}`) ?? dialog.querySelector("[aria-label=Close]")).focus(); // what had it is gone
    this.#describe(picture, columns, signal);
    this.#kept(picture, kept, signal);
    this.#similar(picture, similar, signal);
  }

  #view(picture, name) {
    const img = h("img", { src: thumbnail(picture.id, 1280), alt: name, onerror: () => lost(img, view) });
    const step = (by, label, path) =>
      this.hasNeighbour(by) ? h(by < 0 ? "button.step.before" : "button.step.after", { type: "button", "aria-label": label, onclick: () => this.step(by) }, drawing(path)) : null;
    const view = h("div.view", {}, img, step(-1, "Before", "m14 6-6 6 6 6"), step(1, "Next", "m10 6 6 6-6 6"));
    return view;
  }

  #ask(picture, signal) {
    const input = h("input", { type: "text", placeholder: "Ask about this picture", "aria-label": "Ask about this picture", enterKeyHint: "send" });
    const list = h("ul", { "aria-live": "polite" });
    const submit = async (event) => {
      event.preventDefault();
      const question = input.value.trim();
      if (!question) return;
      input.value = "";
      const said = h("b", {}, "…");
      list.prepend(h("li", {}, h("span", {}, question), said));
      try {
        for await (const answer of lines("ask", { question, ids: [picture.id] }, signal)) {
          said.replaceChildren(answer.answer || "(nothing)", h("small", { title: "How likely the model finds it" }, percent(answer.confidence)));
        }
      } catch (error) {
        if (error.name !== "AbortError") said.replaceChildren(h("span.wrong", {}, error.message));
      }
    };
    return h("section.ask", {}, h("form", { onsubmit: submit, autocomplete: "off" }, input, h("button", {}, "Ask")), list);
  }

  async #describe(picture, section, signal) {
    try {
      const known = await get(`pictures/${picture.id}`, {}, signal);
      section.replaceChildren(table({ ...picture, ...known }), ...known.paths.map((path) => h("p.path", {}, path)));
    } catch { /* what the grid knew of it stays */ }
  }

  async #kept(picture, section, signal) {
    const [heading, words] = section.children;
    try {
      const kept = await get(`pictures/${picture.id}/kept`, {}, signal);
      const where = kept.rank === null ? "A search for that does not find it among the first." :
        kept.rank === 1 ? `A search for that finds it first of ${count(kept.among, "picture")}.` : `A search for that finds it ${ordinal(kept.rank)} of ${count(kept.among, "picture")}.`;
      section.replaceChildren(heading, h("p", {}, h("q", {}, kept.caption)), h("p.soft", {}, where));
    } catch (error) {
      if (error.name !== "AbortError") words.textContent = error.message;
    }
  }

  async #similar(picture, section, signal) {
    const place = section.querySelector(".similar");
    try {
      const { hits } = await get("search", { like: picture.id, top: SIMILAR }, signal);
      place.replaceChildren(...hits.map((hit) => h("button", { type: "button", title: `${fileName(hit.path)} · ${hit.score.toFixed(2)}`, "aria-label": `Open ${fileName(hit.path)}`, onclick: () => this.show(hit) },
        h("img", { src: thumbnail(hit.id, 160), alt: "" }))));
      section.hidden = !hits.length;
    } catch (error) {
      if (error.name !== "AbortError") place.replaceChildren(h("p.soft", {}, error.message));
    }
  }
}

function table(picture) {
  const rows = [["size", `${picture.width} × ${picture.height}`], ["score", scored(picture)], ...Object.entries(picture.metadata)];
  return h("table", {}, h("tbody", {}, ...rows.filter(([, value]) => value !== null && value !== "").map(([name, value]) =>
    h("tr", {}, h("th", { scope: "row" }, name.replaceAll("_", " ")), h("td", {}, typeof value === "boolean" ? (value ? "yes" : "no") : String(value))))));
}

function ordinal(n) {
  const end = n % 100 > 10 && n % 100 < 14 ? "th" : (["th", "st", "nd", "rd"][n % 10] ?? "th");
  return `${n.toLocaleString()}${end}`;
}
