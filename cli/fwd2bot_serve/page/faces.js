// Every state that shows no pictures: what it is, and what to do about it.

import { $, drawing, h } from "./dom.js";

const DRAWINGS = {
  empty: ["M3 7a2 2 0 0 1 2-2h4l2 2h8a2 2 0 0 1 2 2v8a2 2 0 0 1-2 2H5a2 2 0 0 1-2-2z"],
  nothing: ["M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14", "m16 16 5 5", "M8 11h6"],
  error: ["M12 3 2.5 20h19z", "M12 10v4.5", "M12 17.3v.2"],
  wait: ["M12 3a9 9 0 1 0 9 9"],
  token: ["M6 11h12v9H6z", "M8.5 11V8a3.5 3.5 0 0 1 7 0v3"],
};

export function hide() {
  $("face").hidden = true;
}

export function show(kind, title, ...rest) {
  const picture = drawing(...DRAWINGS[kind]);
  if (kind === "wait") picture.classList.add("turning");
  const face = $("face");
  face.dataset.kind = kind;
  face.replaceChildren(picture, h("h2", {}, title), ...rest.map((part) => (typeof part === "string" ? h("p", {}, part) : part)));
  face.hidden = false;
}

/** The face of an error; `again` is called by itself where waiting helps. Returns what ends the waiting. */
export function showError(error, again, login) {
  const retry = h("button.plain", { type: "button", onclick: again }, "Try again");
  let timer = null;
  const later = () => (timer = setTimeout(again, 1000 * (error.retryAfter ?? 2)));
  if (error.kind === "loading") {
    show("wait", "The model is being loaded", "Pictures and questions need it. This goes on by itself as soon as it is there.");
    later();
  } else if (error.kind === "no-index") {
    show("wait", "The index is not there", error.message);
    later();
  } else if (error.kind === "offline") {
    show("wait", "The server does not answer", "Is it still running? This goes on by itself as soon as it does.");
    later();
  } else if (error.kind === "overloaded") {
    show("wait", "Many are asking at once", "This goes on by itself in a moment.");
    later();
  } else if (error.kind === "empty") {
    show("empty", "Nothing is indexed yet", h("p", {}, "Add pictures with ", h("code", {}, "fwd2bot index FOLDER"), ": they turn up here by themselves."));
    error.retryAfter = 3;
    later();
  } else if (error.kind === "token") {
    const input = h("input", { type: "password", autocomplete: "current-password", "aria-label": "Token", required: true });
    const form = h("form", { onsubmit: (event) => { event.preventDefault(); login(input.value); } }, input, h("button", {}, "Enter"));
    show("token", "This server wants a token", error.message.startsWith("That") ? error.message : "Whoever started it knows it.", form);
    input.focus();
  } else {
    show("error", "That did not work", error.message, retry);
  }
  return () => clearTimeout(timer);
}
