// Elements, without markup in strings: nothing that a corpus or a person says can become HTML.

export const $ = (id) => document.getElementById(id);

/** An element: h("p.soft", {title: "x"}, "text", child, ...). Properties are set as properties, on* as listeners. */
export function h(what, properties = {}, ...children) {
  const [tag, ...classes] = what.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("aria-") || name === "for" || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** A drawing of these paths, for eyes only. */
export function drawing(...paths) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  for (const d of paths) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", d);
    svg.append(path);
  }
  return svg;
}

export const fileName = (path) => path.split(/[\\/]/).pop();
export const count = (n, thing) => `${n.toLocaleString()} ${thing}${n === 1 ? "" : "s"}`;
export const percent = (share) => `${Math.round(100 * share)} %`;
