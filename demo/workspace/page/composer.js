// The input box: Enter sends, Shift+Enter starts a new line, `/` offers commands and `@` people.

import { h, drawing, toast } from "./dom.js";
import { post } from "./store.js";

const SEND = [["path", { d: "M3 4l19 8-19 8 3.5-8z", fill: "currentColor" }]];

export class Composer {
  // target() returns the { channel, thread_ts } to write to.
  constructor(form, store, target) {
    this.store = store;
    this.target = target;
    this.chosen = 0;
    this.offers = [];
    this.history = [];
    this.back = 0;
    const listeners = { oninput: () => this.changed(), onkeydown: (event) => this.key(event), onblur: () => setTimeout(() => this.offer([]), 150) };
    this.box = h("textarea", { rows: "1", "aria-label": "Message", ...listeners });
    this.popup = h("ul", { class: "popup", role: "listbox", hidden: true });
    this.send = h("button", { type: "submit", class: "send", "aria-label": "Send", title: "Send", disabled: true }, drawing(SEND, "", "send-icon"));
    form.replaceChildren(this.popup, h("div", { class: "field-box" }, this.box, this.send));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    // An app that has just started may register its commands while a person is typing.
    store.addEventListener("loaded", () => {
      if (document.activeElement === this.box && !this.offers.length) this.offer(this.matching());
    });
  }

  placeholder(text) {
    this.box.placeholder = text;
  }

  changed() {
    this.box.style.height = "auto";
    this.box.style.height = `${Math.min(this.box.scrollHeight, 200)}px`;
    this.send.disabled = !this.box.value.trim();
    this.offer(this.matching());
  }

  matching() {
    const text = this.box.value.slice(0, this.box.selectionStart);
    if (/^\/\S*$/.test(text)) {
      return this.store.commands
        .filter((entry) => entry.command.startsWith(text.toLowerCase()))
        .map((entry) => ({ label: entry.command, hint: entry.usage_hint, help: entry.description, insert: `${entry.command} `, from: 0 }));
    }
    const at = text.match(/(^|\s)@([\w-]*)$/);
    if (!at) return [];
    const from = text.length - at[2].length - 1;
    const names = [{ name: this.store.app.name, title: "app" }, ...this.store.users.values()];
    return names.filter((user) => user.name.startsWith(at[2])).map((user) => ({ label: `@${user.name}`, hint: "", help: user.title, insert: `@${user.name} `, from }));
  }

  offer(offers) {
    this.offers = offers;
    this.chosen = 0;
    this.drawOffers();
  }

  drawOffers() {
    this.popup.hidden = !this.offers.length;
    const item = (entry, index) => {
      const take = (event) => (event.preventDefault(), this.take(entry));
      const properties = { role: "option", "aria-selected": String(index === this.chosen), onpointerdown: take };
      return h("li", properties, h("strong", {}, entry.label), entry.hint ? h("code", {}, entry.hint) : null, h("span", {}, entry.help));
    };
    this.popup.replaceChildren(...this.offers.map(item));
    this.popup.children[this.chosen]?.scrollIntoView({ block: "nearest" });
  }

  take(entry) {
    const end = this.box.selectionStart;
    this.box.value = this.box.value.slice(0, entry.from) + entry.insert + this.box.value.slice(end);
    this.box.focus();
    this.changed();
    this.offer([]);
  }

  key(event) {
    const { length } = this.offers;
    if (length && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
      event.preventDefault();
      this.chosen = (this.chosen + (event.key === "ArrowDown" ? 1 : length - 1)) % length;
      this.drawOffers();
    } else if (length && event.key === "Escape") {
      this.offer([]);
    } else if (length && event.key === "Tab") {
      event.preventDefault();
      this.take(this.offers[this.chosen]);
    } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      const entry = this.offers[this.chosen];
      // Enter completes an unfinished command and sends a finished one.
      if (entry && !this.box.value.slice(entry.from).startsWith(entry.label)) this.take(entry);
      else this.submit();
    } else if (event.key === "ArrowUp" && !this.box.value && this.history.length) {
      event.preventDefault();
      this.back = Math.min(this.back + 1, this.history.length);
      this.box.value = this.history[this.history.length - this.back];
      this.changed();
      this.offer([]);
    }
  }

  async submit() {
    const text = this.box.value.trim();
    if (!text) return;
    this.history.push(text);
    this.back = 0;
    this.box.value = "";
    this.changed();
    try {
      await post("/client/say", { user: this.store.user, text, ...this.target() });
    } catch (error) {
      this.box.value ||= text;
      this.changed();
      this.offer([]);
      toast(error.message);
    }
  }
}
