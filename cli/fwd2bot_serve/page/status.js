// What is in the index, and an indexing run while it goes on.

import { get } from "./api.js";
import { $, count, h } from "./dom.js";

const SECONDS = { writing: 1.5, loading: 2, quiet: 8 };

export class Status {
  constructor({ grown, changed }) {
    this.now = null;
    this.run = null; // where and when the run that is watched was first seen
    this.grown = grown; // (new pictures): shown nowhere yet
    this.changed = changed; // the columns may be others
    this.seen = null;
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.look(); });
  }

  /** Those that are in the grid are no news; it may hold some that were committed since the last look. */
  upToDate(shown) {
    this.seen = this.now ? Math.max(this.now.files, shown) : null;
    $("news").hidden = true;
  }

  async look() {
    clearTimeout(this.timer);
    if (document.hidden) return;
    let pause = SECONDS.quiet;
    try {
      const now = await get("status");
      if (this.now && this.now.version !== now.version) this.changed();
      this.now = now;
      this.seen ??= now.files;
      this.#show(now);
      pause = now.writing ? SECONDS.writing : now.model_state === "loading" ? SECONDS.loading : SECONDS.quiet;
    } catch {
      $("status").textContent = "";
      $("status").classList.remove("busy");
      pause = SECONDS.loading;
    }
    this.timer = setTimeout(() => this.look(), 1000 * pause);
  }

  #show(now) {
    const words = [count(now.files, "picture")];
    if (now.writing) {
      this.run ??= { files: now.files, since: Date.now() };
      const seconds = (Date.now() - this.run.since) / 1000;
      const added = now.files - this.run.files;
      words.unshift("Indexing");
      if (added > 0 && seconds > 1) words.push(`${(added / seconds).toPrecision(2)}/s`);
    } else {
      this.run = null;
      if (now.model_state === "loading") words.push("the model is being loaded");
      if (now.model_state === "failed") words.push("no model");
    }
    $("status").textContent = words.join(" · ");
    $("status").title = `${now.index}\n${now.model}\n${(now.bytes / 1e6).toFixed(1)} MB${now.skipped ? `\n${now.skipped} files skipped` : ""}`;
    $("status").classList.toggle("busy", now.writing);
    const news = now.files - this.seen;
    $("news").hidden = news <= 0;
    if (news > 0) $("news").replaceChildren(h("button.plain", { type: "button", onclick: () => this.grown() }, `Show ${count(news, "new picture")}`));
  }
}
