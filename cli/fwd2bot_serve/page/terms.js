// What is looked for: words, pictures of one's own, pictures of the index, each with its weight.

import { thumbnail } from "./api.js";
import { $, h } from "./dom.js";

const WEIGHTS = [3, 2, 1, 0.5, -0.5, -1, -2];
const MAX_SIDE = 1024; // pixels; the server reduces them as far in any case
const MAX_FILE = 64 * 2 ** 20;

export class Terms {
  constructor(changed, refused) {
    this.list = []; // {text} or {image, url} or {like, name}, and weight
    this.changed = changed;
    this.refused = refused;
  }

  get isEmpty() {
    return this.list.length === 0 && !words();
  }

  /** As the server takes them, with what stands in the field. */
  toJson() {
    const typed = words();
    const parts = this.list.map(({ text, image, like, weight }) => ({ ...(text ? { text } : image ? { image } : { like }), weight }));
    return typed ? [...parts, { text: typed.what, weight: typed.weight }] : parts;
  }

  add(term) {
    this.list.push({ weight: 1, ...term });
    this.show();
    this.changed();
  }

  /** Only this. */
  set(...terms) {
    this.clear();
    this.add(...terms);
  }

  clear() {
    this.#keep(() => false);
    $("words").value = "";
    this.show();
  }

  keepWords() {
    const typed = words();
    if (!typed) return;
    $("words").value = "";
    this.add({ text: typed.what, weight: typed.weight });
  }

  dropLast() {
    if (!this.list.length) return;
    this.#keep((term) => term !== this.list.at(-1));
    this.show();
    this.changed();
  }

  #keep(kept) {
    const left = this.list.filter((term) => kept(term));
    for (const term of this.list) if (term.url && !left.includes(term)) URL.revokeObjectURL(term.url);
    this.list = left;
  }

  async addFiles(files) {
    const large = files.filter((file) => file.size > MAX_FILE).map((file) => file.name);
    this.refused(large.length ? `${large.join(", ")} ${large.length === 1 ? "is" : "are"} too large to be sent.` : "");
    for (const file of files.filter((file) => file.size <= MAX_FILE)) {
      const small = await reduced(file);
      this.add({ image: await base64(small), url: URL.createObjectURL(small), name: file.name });
    }
  }

  show() {
    $("terms").replaceChildren(...this.list.map((term) => this.#chip(term)));
    $("words").placeholder = this.list.length ? "and …" : "Search, or drop a picture";
  }

  #chip(term) {
    const name = term.text ?? term.name;
    const weights = [...new Set([...WEIGHTS, term.weight])].sort((a, b) => b - a);
    const select = h(
      "select",
      { title: "Weight", "aria-label": `Weight of ${name}`, onchange: () => { term.weight = Number(select.value); this.show(); this.changed(); $("terms").children[this.list.indexOf(term)].querySelector("select").focus(); } },
      ...weights.map((weight) => h("option", { value: weight, selected: weight === term.weight }, weight > 0 ? `×${weight}` : `−${-weight}`)),
    );
    const remove = () => { this.#keep((other) => other !== term); this.show(); this.changed(); $("words").focus(); };
    return h(
      term.weight < 0 ? "li.away" : "li",
      { title: term.weight < 0 ? `Away from ${name}` : name },
      term.text ? null : h("img", { src: term.url ?? thumbnail(term.like, 160), alt: "" }),
      h("span", {}, term.text ?? (term.like ? `like ${name}` : name)),
      select,
      h("button.quiet", { type: "button", "aria-label": `Remove ${name}`, onclick: remove }, "×"),
    );
  }
}

/** What is typed. */
function words() {
  const typed = $("words").value.trim();
  return typed ? weighted(typed) : null;
}

/** Words with their weight, as the server takes them apart: "a boat^2". */
export function weighted(words) {
  const found = /^(.+)\^([-+]?\d+(?:\.\d*)?)$/s.exec(words);
  return found && Number(found[2]) !== 0 ? { what: found[1], weight: Number(found[2]) } : { what: words, weight: 1 };
}

/** Large photos are made small before they are sent; what the browser cannot read is left to the server. */
async function reduced(file) {
  if (file.size < 2 ** 20) return file; // as it is, so that a picture of the corpus finds itself
  try {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
    const canvas = new OffscreenCanvas(Math.max(1, Math.round(bitmap.width * scale)), Math.max(1, Math.round(bitmap.height * scale)));
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    return await canvas.convertToBlob({ type: "image/png" });
  } catch {
    return file;
  }
}

async function base64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
}
