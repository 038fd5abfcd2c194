// Building elements without ever parsing markup: text becomes text nodes, so nothing a person or a log line says can run.

const SVG = "http://www.w3.org/2000/svg";

// h("button", { class: "x", onclick: f, disabled: true }, "Label", child, ...)
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

// A drawing of paths: [["path", { d: "..." }], ...] on a 24 x 24 field.
export function drawing(shapes, label, className) {
  const root = document.createElementNS(SVG, "svg");
  root.setAttribute("viewBox", "0 0 24 24");
  root.setAttribute("class", className);
  if (label) {
    root.setAttribute("role", "img");
    root.setAttribute("aria-label", label);
    const title = document.createElementNS(SVG, "title");
    title.textContent = label;
    root.append(title);
  } else {
    root.setAttribute("aria-hidden", "true");
  }
  for (const [tag, properties] of shapes) {
    const shape = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(properties)) shape.setAttribute(name, value);
    root.append(shape);
  }
  return root;
}

export function toast(text, kind = "error") {
  const note = h("div", { class: `toast ${kind}` }, text);
  document.getElementById("toasts").append(note);
  setTimeout(() => note.remove(), 6000);
}

// The address to open for a link, or null for anything but the web and mail.
export function safeLink(address) {
  try {
    const url = new URL(address);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

// A file's address below this page, whatever port the workspace believes to have (it may be tunnelled).
export function localPath(address) {
  const url = new URL(address, location.href);
  return url.pathname + url.search;
}
