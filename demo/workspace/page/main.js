// Builds the page: who you are, which channel and thread are open, and what each change redraws.

import { h, toast } from "./dom.js";
import { link, mrkdwn } from "./mrkdwn.js";
import { Composer } from "./composer.js";
import { avatar, MessageList } from "./message.js";
import { PanelView } from "./panel.js";
import { get, Store } from "./store.js";

const PANEL_PERIOD_MS = 5000;
const byId = (id) => document.getElementById(id);
const app = byId("app");
const store = new Store(localStorage.getItem("user") ?? "");
const open = { channel: null, thread: null };
const unread = new Map();

function messagesOf(channel) {
  return [...(store.messages.get(channel)?.values() ?? [])].sort((a, b) => Number(a.ts) - Number(b.ts));
}

function isInChannel(message) {
  return !message.thread_ts || message.thread_ts === message.ts || message.subtype === "thread_broadcast";
}

function isInThread(message, root) {
  return root !== null && (message.ts === root || message.thread_ts === root);
}

const channelList = new MessageList(byId("messages"), store, {
  open: (ts) => openThread(ts),
  messages: () => messagesOf(open.channel).filter(isInChannel),
  empty: () => h("p", { class: "empty" }, "No messages yet. Type / to see what the bot can do."),
});
const threadList = new MessageList(byId("replies"), store, {
  open: null,
  messages: () => messagesOf(open.channel).filter((message) => isInThread(message, open.thread)),
  empty: () => h("p", { class: "empty" }, "This message was deleted."),
});
const composer = new Composer(byId("composer"), store, () => ({ channel: open.channel }));
const threadComposer = new Composer(byId("thread-composer"), store, () => ({ channel: open.channel, thread_ts: open.thread }));
const panel = new PanelView(byId("panel"));

function title(channel) {
  return channel.is_im ? store.names.user(channel.user) ?? channel.user : `# ${channel.name}`;
}

function drawSidebar() {
  byId("team-name").textContent = store.team.name;
  const entry = (channel) => {
    const count = unread.get(channel.id) ?? 0;
    const properties = { "aria-current": channel.id === open.channel ? "page" : null, data: { channel: channel.name || channel.id }, onclick: () => openChannel(channel.id) };
    const badge = count ? h("span", { class: "count" }, String(count)) : null;
    return h("li", {}, h("button", { type: "button", class: `channel-link${count ? " unread" : ""}`, ...properties }, h("span", {}, title(channel)), badge));
  };
  const all = [...store.channels.values()].filter((channel) => !channel.is_archived);
  const directs = all.filter((channel) => channel.is_im);
  byId("channels").replaceChildren(...all.filter((channel) => !channel.is_im).map(entry));
  byId("directs").replaceChildren(...directs.map(entry));
  byId("direct-section").hidden = !directs.length;
  byId("user").replaceChildren(...[...store.users.values()].map((user) => h("option", { value: user.name }, user.title ? `${user.name} \u00B7 ${user.title}` : user.name)));
  byId("user").value = store.user;
  drawAppStatus();
}

function drawAppStatus() {
  const { name, connected, user_id } = store.app;
  const presence = h("span", { class: `presence ${connected ? "on" : "off"}` }, connected ? "connected" : "not running");
  byId("app-status").replaceChildren(avatar(store, user_id, "small"), h("span", {}, name), presence);
}

function drawHeader() {
  const channel = store.channels.get(open.channel);
  byId("channel-name").textContent = title(channel);
  byId("channel-topic").replaceChildren(...mrkdwn(channel.topic?.value ?? "", store.names));
  byId("bookmarks").replaceChildren(...(channel.bookmarks ?? []).map((entry) => link(entry.link, entry.title)));
  byId("thread-channel").textContent = title(channel);
  composer.placeholder(`Message ${title(channel).replace("# ", "#")}`);
  threadComposer.placeholder("Reply ...");
  document.title = `${title(channel)} \u00B7 ${store.team.name}`;
}

function openChannel(id) {
  if (id !== open.channel) closeThread();
  open.channel = id;
  unread.delete(id);
  app.dataset.drawer = "closed";
  history.replaceState(null, "", `/#${store.channels.get(id).name || id}`);
  drawSidebar();
  drawHeader();
  channelList.showAll();
}

function openThread(ts) {
  open.thread = ts;
  app.dataset.thread = "open";
  threadList.showAll();
  // On a phone, focus would open the keyboard over the messages.
  if (matchMedia("(hover: hover)").matches) threadComposer.box.focus({ preventScroll: true });
}

function redrawMessages() {
  channelList.showAll({ keepPlace: true });
  if (open.thread) threadList.showAll({ keepPlace: true });
}

function closeThread() {
  open.thread = null;
  app.dataset.thread = "closed";
}

// /archives/C0X/p1700000000000001 is the URL of a message.
function wantedPlace() {
  const found = location.pathname.match(/^\/archives\/(\w+)\/p(\d+)(\d{6})$/);
  if (found) return { channel: found[1], ts: `${found[2]}.${found[3]}`, thread: new URLSearchParams(location.search).get("thread_ts") };
  return { channel: decodeURIComponent(location.hash.slice(1)) };
}

function firstOpen() {
  const wanted = wantedPlace();
  const all = [...store.channels.values()];
  const channel = all.find((entry) => entry.id === wanted.channel || (entry.name && entry.name === wanted.channel)) ?? all[0];
  openChannel(channel.id);
  if (wanted.ts) {
    if (wanted.thread) openThread(wanted.thread);
    const node = (wanted.thread ? threadList : channelList).shown.get(wanted.ts);
    node?.classList.add("target");
    node?.scrollIntoView({ block: "center" });
  }
}

store.addEventListener("loaded", () => {
  localStorage.setItem("user", store.user);
  if (!store.channels.has(open.channel)) firstOpen();
  else {
    drawSidebar();
    drawHeader();
    redrawMessages();
  }
});
store.addEventListener("message", ({ detail: { message, isNew } }) => {
  if (message.channel !== open.channel) {
    if (isNew && isInChannel(message)) unread.set(message.channel, (unread.get(message.channel) ?? 0) + 1);
    drawSidebar();
    return;
  }
  if (isInChannel(message)) channelList.update(message, isNew);
  if (isInThread(message, open.thread)) threadList.update(message, isNew);
});
store.addEventListener("deleted", ({ detail }) => {
  if (detail.channel === open.channel) redrawMessages();
});
store.addEventListener("app", drawAppStatus);
store.addEventListener("link", ({ detail }) => (byId("no-answer").hidden = detail.isUp));
store.addEventListener("view", ({ detail }) => toast(`The app opened a form (${detail.title?.text ?? detail.type}); this page does not show forms yet.`, "info"));

byId("user").addEventListener("change", (event) => store.become(event.target.value));
byId("thread-close").addEventListener("click", closeThread);
byId("menu").addEventListener("click", () => (app.dataset.drawer = "open"));
byId("scrim").addEventListener("click", () => (app.dataset.drawer = "closed"));
window.addEventListener("keydown", (event) => event.key === "Escape" && !document.querySelector("dialog[open]") && (app.dataset.drawer === "open" ? (app.dataset.drawer = "closed") : closeThread()));

async function start() {
  // The name stored in this browser may belong to another workspace.
  const { users } = await get("/client/state");
  if (!users.some((user) => user.name === store.user)) store.user = users[0].name;
  store.connect();
  await panel.refresh();
  setInterval(() => document.hidden || panel.busy || panel.refresh(), PANEL_PERIOD_MS);
}

start().catch(() => (byId("no-answer").hidden = false));
