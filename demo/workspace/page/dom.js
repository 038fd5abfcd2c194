// Builds elements without ever parsing markup: text becomes text nodes, so nothing in a message or a log line can run.

const SVG = "http://www.w3.org/2000/svg";

function build(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

const svg = (tag, properties, ...children) => build(document.createElementNS(SVG, tag), properties, children);

// h("button", { class: "x", onclick: f, disabled: true }, "Label", child, ...)
export function h(tag, properties = {}, ...children) {
  return build(document.createElement(tag), properties, children);
}

// Draws shapes, [["path", { d: "..." }], ...], on a field of 24 x 24.
export function drawing(shapes, label, className) {
  const meaning = label ? { role: "img", "aria-label": label } : { "aria-hidden": "true" };
  return svg("svg", { viewBox: "0 0 24 24", class: className, ...meaning }, label ? svg("title", {}, label) : null, shapes.map((shape) => svg(...shape)));
}

export function toast(text, kind = "error") {
  const note = h("div", { class: `toast ${kind}` }, text);
  document.getElementById("toasts").append(note);
  setTimeout(() => note.remove(), 6000);
}

// Returns the address that a link may open, or null for anything but web and mail.
export function safeLink(address) {
  try {
    const url = new URL(address);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

// Returns a file's address below this page, because a tunnelled workspace does not know the port that the browser uses.
export function localPath(address) {
  const url = new URL(address, location.href);
  return url.pathname + url.search;
}
