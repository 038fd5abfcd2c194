// Shows a message, and lists of messages that change one message at a time.

import { h, drawing, localPath, toast } from "./dom.js";
import { picture, showBlock } from "./blocks.js";
import { mrkdwn } from "./mrkdwn.js";
import { emoji } from "./emoji.js";
import { post } from "./store.js";

const CHIP = [
  ["rect", { x: 6, y: 6, width: 12, height: 12, rx: 2.5, fill: "none", stroke: "#fff", "stroke-width": 1.8 }],
  ["path", { d: "M9.5 6V3m5 3V3m-5 18v-3m5 3v-3M6 9.500H3m3 5H3m18-5h-3m3 5h-3", stroke: "#fff", "stroke-width": 1.8 }],
  ["circle", { cx: 12, cy: 12, r: 2.6, fill: "#4ade80" }],
];
const GROUP_SECONDS = 300;
const SMILE = [
  ["circle", { cx: 11, cy: 13, r: 8, fill: "none", stroke: "currentColor", "stroke-width": 1.8 }],
  ["path", { d: "M7.5 15a4 4 0 0 0 7 0M8.500 10.500v1m5-1v1M20 2v6M17 5h6", fill: "none", stroke: "currentColor", "stroke-width": 1.8, "stroke-linecap": "round" }],
];
const PALETTE = ["memo", "eyes", "white_check_mark", "warning", "raised_hand"];

async function react(message, store, name, away) {
  const answer = await post("/client/react", { user: store.user, channel: message.channel, ts: message.ts, name, away });
  if (!answer.ok) toast(answer.error);
}

function time(ts) {
  const date = new Date(Number(ts) * 1000);
  return h("time", { datetime: date.toISOString(), title: date.toLocaleString() }, date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" }));
}

export function avatar(store, id, size = "") {
  if (id === store.app.user_id) return h("span", { class: `avatar app ${size}` }, drawing(CHIP, "", "chip"));
  const name = store.names.user(id) ?? "?";
  const tint = [...id].reduce((sum, letter) => sum + letter.charCodeAt(0), 0) % 5;
  return h("span", { class: `avatar tint-${tint} ${size}`, "aria-hidden": "true" }, name[0].toUpperCase());
}

function size(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  return bytes < 2 ** 20 ? `${Math.round(bytes / 1024)} KiB` : `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}

function file(entry) {
  const path = localPath(entry.url_private);
  if (entry.thumb_360)
    return h("figure", { class: "file-image" }, h("figcaption", {}, entry.title, " ", h("a", { href: `${path}?download=1`, download: entry.name }, "download")), picture(path, entry.alt_txt || entry.title, "large-image"));
  const names = h("span", { class: "file-names" }, h("strong", {}, entry.title), h("small", {}, `${entry.name} \u00B7 ${size(entry.size)}`));
  return h("a", { class: "file", href: `${path}?download=1`, download: entry.name }, h("span", { class: "file-type" }, entry.filetype.slice(0, 4).toUpperCase()), names);
}

// A reaction: a press puts the reader's own there too, or takes it away again.
function reaction(entry, message, store) {
  const isMine = entry.users.includes(store.me.id);
  const about = { class: `reaction${isMine ? " mine" : ""}`, title: entry.users.map((id) => store.names.user(id)).join(", ") };
  return h("button", { type: "button", ...about, onclick: () => react(message, store, entry.name, isMine) }, emoji(entry.name), ` ${entry.count}`);
}

function reactionMenu(message, store) {
  const palette = h("div", { class: "palette" });
  const choice = (name) => {
    const isMine = (message.reactions ?? []).some((entry) => entry.name === name && entry.users.includes(store.me.id));
    return h("button", { type: "button", class: "plain", "aria-label": `React with ${name}`, onclick: () => react(message, store, name, isMine) }, emoji(name));
  };
  const open = () => palette.replaceChildren(...PALETTE.map(choice));
  return h("details", { class: "react", ontoggle: open }, h("summary", { title: "Add a reaction", "aria-label": "Add a reaction" }, drawing(SMILE, "", "smile")), palette);
}

function body(message, store) {
  const context = {
    names: store.names,
    press: async (action) => {
      const answer = await post("/client/press", { user: store.user, channel: message.channel, ts: message.ts, ...action });
      if (!answer.ok) toast(answer.notes[0] ?? answer.error);
    },
  };
  const parts = (message.blocks ?? []).map((block) => showBlock(block, context));
  if (!parts.length && message.text) parts.push(h("div", { class: "text" }, mrkdwn(message.text, store.names)));
  for (const attachment of message.attachments ?? []) parts.push(h("div", { class: "attachment" }, mrkdwn(attachment.text ?? attachment.fallback ?? "", store.names)));
  if (message.files?.length) parts.push(h("div", { class: "files" }, message.files.map(file)));
  if (message.edited) parts.push(h("span", { class: "edited" }, "(edited)"));
  if (message.reactions?.length) {
    const shown = message.reactions.map((entry) => reaction(entry, message, store));
    parts.push(h("div", { class: "reactions" }, shown));
  }
  return parts;
}

function threadButton(message, store, open) {
  if (!message.reply_count || message.thread_ts !== message.ts) return null;
  const count = message.reply_count === 1 ? "1 reply" : `${message.reply_count} replies`;
  const avatars = message.reply_users.slice(0, 4).map((id) => avatar(store, id, "small"));
  const last = h("span", { class: "last" }, "last at ", time(message.latest_reply));
  return h("button", { type: "button", class: "thread-link", onclick: () => open(message.ts) }, avatars, h("span", { class: "count" }, count), last);
}

// `open` opens a thread; inside a thread it is null and there is no thread button.
function messageElement(message, store, { open, isContinued }) {
  const name = store.names.user(message.user) ?? message.user;
  const isPrivate = Boolean(message.is_ephemeral);
  const notes = [
    isPrivate ? h("div", { class: "note" }, "Only visible to you") : null,
    message.pinned_to ? h("div", { class: "note" }, "Pinned") : null,
    open && message.subtype === "thread_broadcast" ? h("div", { class: "note" }, "replied to a ", h("button", { type: "button", class: "plain", onclick: () => open(message.thread_ts) }, "thread")) : null,
  ];
  const head = h("div", { class: "head" }, h("strong", { class: "name" }, name), message.bot_id ? h("span", { class: "badge" }, "APP") : null, time(message.ts));
  const content = h("div", { class: "content" }, notes, isContinued ? null : head, body(message, store), open ? threadButton(message, store, open) : null);
  const canReply = open && !isPrivate && !message.subtype;
  const reply = canReply ? h("button", { type: "button", class: "reply", title: "Reply in thread", onclick: () => open(message.ts) }, "Reply") : null;
  const classes = `message${isContinued ? " continued" : ""}${isPrivate ? " private" : ""}`;
  const side = isContinued ? h("span", { class: "gutter" }, time(message.ts)) : avatar(store, message.user);
  const tools = isPrivate ? null : h("div", { class: "tools" }, reactionMenu(message, store), reply);
  return h("article", { class: classes, data: { ts: message.ts, user: name } }, side, content, tools);
}

// A list of messages in order of time that stays scrolled to its end.
export class MessageList {
  constructor(element, store, { open, messages, empty }) {
    this.element = element;
    this.store = store;
    this.open = open;
    this.messages = messages;
    this.empty = empty;
    this.shown = new Map();
    this.isPointerDown = false;
    this.waiting = new Map();
    // While a pointer is down edits wait, so that a button is not replaced between press and release.
    element.addEventListener("pointerdown", () => (this.isPointerDown = true));
    for (const kind of ["pointerup", "pointercancel"]) window.addEventListener(kind, () => setTimeout(() => this.release(), 60));
    new ResizeObserver(() => this.wasAtEnd && this.toEnd()).observe(element);
    element.addEventListener("scroll", () => (this.wasAtEnd = this.isAtEnd()));
    element.addEventListener("load", () => this.wasAtEnd && this.toEnd(), true);
    this.wasAtEnd = true;
  }

  isAtEnd() {
    return this.element.scrollHeight - this.element.scrollTop - this.element.clientHeight < 60;
  }

  toEnd() {
    this.element.scrollTop = this.element.scrollHeight;
  }

  // Draws everything. With `keepPlace` a reader who is not at the end stays where they are.
  showAll({ keepPlace = false } = {}) {
    const place = this.element.scrollTop;
    const stays = keepPlace && !this.wasAtEnd;
    const nodes = [];
    let previous = null;
    let day = "";
    this.shown.clear();
    for (const message of this.messages()) {
      const date = new Date(Number(message.ts) * 1000).toDateString();
      if (date !== day) nodes.push(h("div", { class: "day" }, h("span", {}, date === new Date().toDateString() ? "Today" : date)));
      const isContinued = date === day && continues(previous, message);
      day = date;
      const node = messageElement(message, this.store, { open: this.open, isContinued });
      this.shown.set(message.ts, node);
      nodes.push(node);
      previous = message;
    }
    if (!nodes.length) nodes.push(this.empty());
    this.element.replaceChildren(...nodes);
    this.wasAtEnd = !stays;
    if (stays) this.element.scrollTop = place;
    else this.toEnd();
  }

  update(message, isNew) {
    if (this.isPointerDown) return this.waiting.set(message.ts, message);
    const old = this.shown.get(message.ts);
    if (!old || isNew) return this.showAll({ keepPlace: true });
    const focus = old.contains(document.activeElement) ? document.activeElement.dataset.action : null;
    const node = messageElement(message, this.store, { open: this.open, isContinued: old.classList.contains("continued") });
    old.replaceWith(node);
    this.shown.set(message.ts, node);
    if (focus) node.querySelector(`[data-action="${CSS.escape(focus)}"]`)?.focus();
    if (this.wasAtEnd) this.toEnd();
  }

  release() {
    this.isPointerDown = false;
    const waiting = [...this.waiting.values()];
    this.waiting.clear();
    for (const message of waiting) this.update(message, !this.shown.has(message.ts));
  }
}

function continues(previous, message) {
  return Boolean(
    previous && previous.user === message.user && previous.is_ephemeral === message.is_ephemeral && !message.is_ephemeral &&
      !previous.reply_count && message.subtype === previous.subtype && Number(message.ts) - Number(previous.ts) < GROUP_SECONDS,
  );
}
