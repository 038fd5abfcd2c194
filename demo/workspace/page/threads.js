// Threads beside the channel: one on a small screen, two side by side where there is room.

import { h } from "./dom.js";
import { Composer } from "./composer.js";
import { MessageList } from "./message.js";

const ROOM_FOR_TWO = "(min-width: 1500px)";
const CLOSE = "M5 5l14 14M19 5L5 19";

class Pane {
  // `number` is 0 for the first pane, which keeps the plain ids.
  constructor(number, root, store, context, close) {
    this.root = root;
    const id = (name) => (number ? `${name}-${number}` : name);
    const icon = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    icon.setAttribute("viewBox", "0 0 24 24");
    icon.setAttribute("aria-hidden", "true");
    icon.append(document.createElementNS("http://www.w3.org/2000/svg", "path"));
    icon.firstChild.setAttribute("d", CLOSE);
    const button = h("button", { class: "icon-button", type: "button", "aria-label": "Close thread", title: "Close thread", onclick: () => close(this) }, icon);
    const list = h("div", { id: id("replies"), class: "list", role: "log", "aria-live": "polite", "aria-label": "Thread messages", tabindex: "0" });
    const form = h("form", { id: id("thread-composer"), class: "composer", autocomplete: "off" });
    const titles = h("div", { class: "titles" }, h("h1", {}, "Thread"), h("p", {}, context.title()));
    this.element = h("aside", { id: id("thread"), class: "thread", "aria-label": "Thread" }, h("header", { class: "bar" }, titles, button), list, form);
    this.list = new MessageList(list, store, {
      open: null,
      messages: () => context.messages(this.root),
      empty: () => h("p", { class: "empty" }, "This message was deleted."),
    });
    this.composer = new Composer(form, store, () => ({ channel: context.channel(), thread_ts: this.root }));
    this.composer.placeholder("Reply ...");
  }
}

export class Threads {
  // context: { messages(root), channel(), title(), changed(count) }
  constructor(element, store, context) {
    this.element = element;
    this.store = store;
    this.context = context;
    this.panes = [];
  }

  open(root) {
    let pane = this.panes.find((one) => one.root === root);
    if (!pane) {
      if (this.panes.length >= (matchMedia(ROOM_FOR_TWO).matches ? 2 : 1)) this.close(this.panes[0]);
      const number = [0, 1].find((one) => !this.panes.some((other) => other.number === one));
      pane = new Pane(number, root, this.store, this.context, (one) => this.close(one));
      pane.number = number;
      this.panes.push(pane);
      this.element.append(pane.element);
    }
    this.context.changed(this.panes.length);
    pane.list.showAll();
    // On a phone, focus would open the keyboard over the messages.
    if (matchMedia("(hover: hover)").matches) pane.composer.box.focus({ preventScroll: true });
  }

  close(pane) {
    this.panes = this.panes.filter((one) => one !== pane);
    pane.element.remove();
    this.context.changed(this.panes.length);
  }

  closeLast() {
    if (this.panes.length) this.close(this.panes.at(-1));
  }

  closeAll() {
    for (const pane of [...this.panes]) this.close(pane);
  }

  redraw() {
    for (const pane of this.panes) pane.list.showAll({ keepPlace: true });
  }

  update(message, isNew) {
    for (const pane of this.panes) if (message.ts === pane.root || message.thread_ts === pane.root) pane.list.update(message, isNew);
  }

  node(ts) {
    return this.panes.map((pane) => pane.list.shown.get(ts)).find(Boolean);
  }
}
