// Conditions on the corpus's own columns, chosen by hand or written in SQL, and the order of what is found.

import { $, h } from "./dom.js";

const quoted = (text) => `'${text.replaceAll("'", "''")}'`;

const PLAIN = { diverse: 0, collapse: false, rerank: false };

function dayAfter(day) {
  if (!day) return "";
  const next = new Date(`${day}T00:00Z`);
  next.setUTCDate(next.getUTCDate() + 1);
  return next.toISOString().slice(0, 10);
}

export class Filters {
  constructor(changed) {
    this.known = []; // columns
    this.parts = new Map(); // column -> condition
    this.changed = changed;
    this.options = { ...PLAIN };
    this.waiting = null;
    this.isStale = true;
  }

  /** One condition in SQL, or null. */
  get where() {
    const parts = [...this.parts.values()].filter(Boolean);
    return parts.length ? parts.map((part) => `(${part})`).join(" AND ") : null;
  }

  get isOpen() {
    return !$("filters").hidden;
  }

  open(open) {
    $("filters").hidden = !open;
    $("filter").setAttribute("aria-expanded", String(open));
    if (!open) {
      this.#renew();
      return;
    }
    window.scrollTo({ top: 0 });
    if (matchMedia("(pointer: fine)").matches) $("filters").querySelector("input, select")?.focus();
  }

  clear() {
    clearTimeout(this.waiting);
    this.parts.clear();
    this.options = { ...PLAIN };
    this.#show();
  }

  /** Columns as they are now. Controls that are being used or that hold a condition stay until they are left. */
  offer(columns) {
    this.isStale ||= JSON.stringify(columns) !== JSON.stringify(this.known);
    this.known = columns;
    this.#renew();
  }

  #renew() {
    if (this.isStale && !this.where && !(this.isOpen && $("filters").children.length)) this.#show();
  }

  #show() {
    this.isStale = false;
    const useful = this.known.filter((column) => column.kind === "boolean" || (column.values ? Object.keys(column.values).length > 1 : column.kind === "text" || column.least !== column.most));
    $("filters").replaceChildren(...useful.map((column) => this.#field(column)), this.#order(), this.#sql());
    this.#count();
  }

  #set(name, condition) {
    this.parts.set(name, condition);
    this.#count();
    clearTimeout(this.waiting);
    this.waiting = setTimeout(this.changed, 250);
  }

  #count() {
    const set = [...this.parts.values()].filter(Boolean).length + (this.options.diverse > 0) + this.options.collapse + this.options.rerank;
    $("filtered").textContent = set;
    $("filtered").hidden = set === 0;
  }

  #field(column) {
    const { name } = column;
    const legend = h("legend", {}, name.replaceAll("_", " "));
    if (column.values) return h("fieldset", {}, legend, this.#values(column));
    if (column.kind === "text") {
      const input = h("input", { type: "text", placeholder: "contains", "aria-label": `${name} contains`,
        oninput: () => this.#set(name, input.value && `contains(lower(${name}), ${quoted(input.value.toLowerCase())})`) });
      return h("fieldset", {}, legend, input);
    }
    if (column.kind === "boolean") {
      const select = h("select", { "aria-label": name, onchange: () => this.#set(name, { yes: name, no: `NOT ${name}` }[select.value]) },
        h("option", { value: "" }, "any"), h("option", { value: "yes" }, "yes"), h("option", { value: "no" }, "no"));
      return h("fieldset", {}, legend, select);
    }
    return h("fieldset", {}, legend, this.#range(column));
  }

  #values({ name, values }) {
    const boxes = Object.entries(values).map(([value, files]) => {
      const box = h("input", { type: "checkbox", value });
      return h("label", {}, box, value, h("small", {}, String(files)));
    });
    const list = h("div.values", {}, ...boxes);
    list.addEventListener("change", () => {
      const chosen = [...list.querySelectorAll(":checked")].map((box) => quoted(box.value));
      this.#set(name, chosen.length && `${name} IN (${chosen.join(", ")})`);
    });
    return list;
  }

  #range({ name, kind, least, most }) {
    const type = kind === "time" ? "date" : "number";
    const hint = (value) => (type === "date" ? { max: "9999-12-30" } : { placeholder: String(value), step: "any" });
    const from = h("input", { type, "aria-label": `${name} from`, ...hint(least) });
    const to = h("input", { type, "aria-label": `${name} to`, ...hint(most) });
    const said = (value) => (type === "date" ? `DATE ${quoted(value)}` : value);
    const changed = () => {
      const until = type === "date" ? `< ${said(dayAfter(to.value))}` : `<= ${said(to.value)}`; // a day has hours
      const parts = [from.value && `${name} >= ${said(from.value)}`, to.value && `${name} ${until}`];
      this.#set(name, parts.filter(Boolean).join(" AND "));
    };
    const row = h("div.range", {}, from, "–", to);
    row.addEventListener("input", changed);
    return row;
  }

  #order() {
    const box = (name, words, title) => {
      const input = h("input", { type: "checkbox", checked: this.options[name], onchange: () => { this.options[name] = input.checked; this.#count(); this.changed(); } });
      return h("label.check", { title }, input, words);
    };
    const slider = h("input", { type: "range", min: 0, max: 1, step: 0.1, value: this.options.diverse, "aria-label": "Diverse",
      onchange: () => { this.options.diverse = Number(slider.value); this.#count(); this.changed(); } });
    return h("fieldset", {}, h("legend", {}, "order"), h("div.order", {},
      box("rerank", "ask the model whether the words fit", "The first 100 are put in order by what the model says of them"),
      box("collapse", "near copies only once", "Of pictures that are all but the same, only the best"),
      h("label.check", { title: "Prefer pictures unlike those before" }, slider, "diverse")));
  }

  #sql() {
    const input = h("input", { type: "text", id: "sql", spellcheck: false, placeholder: "year > 2020 AND width > height",
      onchange: () => this.#set("", input.value.trim()) });
    return h("fieldset.sql", {}, h("label.name", { for: "sql" }, "any condition, in SQL"), input);
  }
}
