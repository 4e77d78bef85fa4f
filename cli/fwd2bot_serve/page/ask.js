// Questions about the selection or the top hits: an answer on each picture, or one about all with what it rests on.

import { lines, post, thumbnail } from "./api.js";
import { $, count, fileName, h, percent } from "./dom.js";

const TOP = 12;

export class Ask {
  constructor(grid, open) {
    this.grid = grid;
    this.open = open;
    this.asking = null;
    document.querySelector("#ask form").addEventListener("submit", (event) => { event.preventDefault(); this.ask(); });
    $("together").addEventListener("change", () => { $("choices").disabled = $("together").checked; });
    $("unselect").addEventListener("click", () => this.grid.select([]));
  }

  get ids() {
    if (this.grid.selection.size) return [...this.grid.selection];
    return [...new Set(this.grid.pictures.map((picture) => picture.id))].slice(0, TOP);
  }

  /** Of what may be asked now. */
  show() {
    const n = this.ids.length;
    $("ask").hidden = n === 0;
    const selected = this.grid.selection.size > 0;
    $("about").textContent = selected ? `${n.toLocaleString()} selected` : n === 1 ? "The one picture" : `The first ${n}`;
    $("unselect").hidden = !selected;
  }

  forget() {
    this.asking?.abort();
    this.grid.forget();
    $("answer").hidden = true;
  }

  async ask() {
    const question = $("question").value.trim();
    if (!question) {
      $("question").focus();
      return;
    }
    this.forget();
    const asking = (this.asking = new AbortController());
    const ids = this.ids;
    $("answer").hidden = false;
    try {
      if ($("together").checked) await this.#together(question, ids, asking.signal);
      else await this.#each(question, ids, asking.signal);
    } catch (error) {
      if (error.name === "AbortError") return;
      this.grid.forget();
      $("answer").replaceChildren(h("span.wrong", {}, error.message), h("button.plain", { type: "button", onclick: () => this.ask() }, "Try again"));
    }
  }

  async #each(question, ids, signal) {
    const choices = $("choices").value.split(",").map((choice) => choice.trim()).filter(Boolean);
    for (const id of ids) this.grid.say(id, null);
    $("answer").replaceChildren(h("span.soft", {}, `Asking about ${count(ids.length, "picture")} …`));
    const counts = new Map();
    let done = 0;
    for await (const answer of lines("ask", { question, ids, ...(choices.length ? { choices } : {}) }, signal)) {
      this.grid.say(answer.id, answer.answer, answer.confidence);
      counts.set(answer.answer, (counts.get(answer.answer) ?? 0) + 1);
      done += 1;
      const most = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 6);
      const rest = done < ids.length ? h("span.soft", {}, `${done} of ${ids.length}`) : null;
      $("answer").replaceChildren(...most.map(([text, n]) => h("span", {}, h("strong", {}, text || "(nothing)"), h("span.soft", {}, ` × ${n}`))), rest ?? "");
    }
  }

  async #together(question, ids, signal) {
    $("answer").replaceChildren(h("span.soft", {}, `Reading ${count(ids.length, "picture")} …`));
    const said = await post("ask", { question, ids, together: true }, signal);
    this.grid.mark(said.rests_on);
    const rests = said.rests_on.map((id) => said.pictures.find((picture) => picture.id === id));
    $("answer").replaceChildren(
      h("strong", {}, said.answer || "(nothing)"),
      h("span.soft", {}, percent(said.confidence)),
      rests.length ? h("span.on", {}, h("span.soft", {}, "rests on"), ...rests.slice(0, 8).map((picture) =>
        h("button", { type: "button", "aria-label": `Open ${fileName(picture.path)}`, title: fileName(picture.path), onclick: () => this.open(picture) }, h("img", { src: thumbnail(picture.id, 160), alt: "" }))))
        : h("span.soft", {}, "rests on no picture in particular"),
    );
  }
}
