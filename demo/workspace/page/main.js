// Builds the page: who you are, which channel and thread are open, and what each change redraws.

import { h, toast } from "./dom.js";
import { link, mrkdwn } from "./mrkdwn.js";
import { Composer } from "./composer.js";
import { avatar, MessageList } from "./message.js";
import { PanelView } from "./panel.js";
import { get, post, Store } from "./store.js";
import { Threads } from "./threads.js";
import { ModalView, showHome } from "./views.js";

const PANEL_PERIOD_MS = 5000;
const byId = (id) => document.getElementById(id);
const app = byId("app");
// Each tab may be another person: the address names one, then the tab remembers, then the browser.
const asked = new URLSearchParams(location.search).get("user");
const store = new Store(asked ?? sessionStorage.getItem("user") ?? localStorage.getItem("user") ?? "");
const open = { channel: null, tab: "messages" };
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
const composer = new Composer(byId("composer"), store, () => ({ channel: open.channel }));
const threads = new Threads(byId("threads"), store, {
  messages: (root) => messagesOf(open.channel).filter((message) => isInThread(message, root)),
  channel: () => open.channel,
  title: () => title(store.channels.get(open.channel)),
  changed: (count) => (app.dataset.thread = count ? "open" : "closed"),
});
const modal = new ModalView(byId("modal"), store);
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
  const home = h("button", { type: "button", class: "channel-link", data: { app: name }, onclick: openApp }, h("span", {}, avatar(store, user_id, "small"), " ", name), presence);
  byId("app-status").replaceChildren(home);
}

// The app's own page: Home, and messages with it alone.
async function openApp() {
  try {
    await post("/client/home", { user: store.user });
    await store.load();
    const own = [...store.channels.values()].find((channel) => channel.is_im);
    if (own) openChannel(own.id, "home");
  } catch (error) {
    toast(error.message);
  }
}

function drawTabs() {
  const isApp = Boolean(store.channels.get(open.channel)?.is_im) && store.app.has_home_tab;
  byId("tabs").hidden = !isApp;
  const shown = isApp ? open.tab : "messages";
  const tab = (name, label) => h("button", { type: "button", role: "tab", "aria-selected": String(shown === name), data: { tab: name }, onclick: () => (name === "home" ? openApp() : openChannel(open.channel, "messages")) }, label);
  byId("tabs").replaceChildren(tab("home", "Home"), tab("messages", "Messages"));
  byId("home").hidden = shown !== "home";
  byId("messages").hidden = shown === "home";
  byId("composer").hidden = shown === "home";
  if (shown === "home") showHome(byId("home"), store);
}

function drawHeader() {
  const channel = store.channels.get(open.channel);
  byId("channel-name").textContent = title(channel);
  byId("channel-topic").replaceChildren(...mrkdwn(channel.topic?.value ?? "", store.names));
  byId("bookmarks").replaceChildren(...(channel.bookmarks ?? []).map((entry) => link(entry.link, entry.title)));
  composer.placeholder(`Message ${title(channel).replace("# ", "#")}`);
  document.title = `${title(channel)} \u00B7 ${store.team.name}`;
}

function openChannel(id, tab = "messages") {
  if (id !== open.channel) threads.closeAll();
  open.channel = id;
  open.tab = tab;
  unread.delete(id);
  app.dataset.drawer = "closed";
  history.replaceState(null, "", `/#${store.channels.get(id).name || id}`);
  drawSidebar();
  drawHeader();
  drawTabs();
  channelList.showAll();
}

function openThread(ts) {
  threads.open(ts);
}

function redrawMessages() {
  channelList.showAll({ keepPlace: true });
  threads.redraw();
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
    const node = wanted.thread ? threads.node(wanted.ts) : channelList.shown.get(wanted.ts);
    node?.classList.add("target");
    node?.scrollIntoView({ block: "center" });
  }
}

store.addEventListener("loaded", () => {
  localStorage.setItem("user", store.user);
  sessionStorage.setItem("user", store.user);
  if (!store.channels.has(open.channel)) firstOpen();
  else {
    drawSidebar();
    drawHeader();
    drawTabs();
    redrawMessages();
  }
  modal.show(store.views.modals.at(-1));
});
store.addEventListener("message", ({ detail: { message, isNew } }) => {
  if (message.channel !== open.channel) {
    if (isNew && isInChannel(message)) unread.set(message.channel, (unread.get(message.channel) ?? 0) + 1);
    drawSidebar();
    return;
  }
  if (isInChannel(message)) channelList.update(message, isNew);
  threads.update(message, isNew);
});
store.addEventListener("deleted", ({ detail }) => {
  if (detail.channel === open.channel) redrawMessages();
});
store.addEventListener("app", drawAppStatus);
store.addEventListener("link", ({ detail }) => (byId("no-answer").hidden = detail.isUp));
store.addEventListener("view", () => {
  modal.show(store.views.modals.at(-1));
  drawTabs();
});

byId("user").addEventListener("change", (event) => store.become(event.target.value));
byId("menu").addEventListener("click", () => (app.dataset.drawer = "open"));
byId("scrim").addEventListener("click", () => (app.dataset.drawer = "closed"));
window.addEventListener("keydown", (event) => event.key === "Escape" && !document.querySelector("dialog[open]") && (app.dataset.drawer === "open" ? (app.dataset.drawer = "closed") : threads.closeLast()));
// Keyboard: Alt+Up and Alt+Down change the channel, / goes to the message box.
window.addEventListener("keydown", (event) => {
  const isTyping = ["TEXTAREA", "INPUT", "SELECT"].includes(document.activeElement?.tagName) || document.querySelector("dialog[open]");
  if (event.altKey && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
    event.preventDefault();
    const ids = [...store.channels.values()].filter((channel) => !channel.is_archived).map((channel) => channel.id);
    const step = event.key === "ArrowDown" ? 1 : ids.length - 1;
    openChannel(ids[(ids.indexOf(open.channel) + step) % ids.length]);
  } else if (event.key === "/" && !isTyping) {
    event.preventDefault();
    composer.box.focus();
    composer.box.value = "/";
    composer.changed();
  }
});

async function start() {
  // The name stored in this browser may belong to another workspace.
  const { users } = await get("/client/state");
  if (!users.some((user) => user.name === store.user)) store.user = users[0].name;
  store.connect();
  await panel.refresh();
  setInterval(() => document.hidden || panel.busy || panel.refresh(), PANEL_PERIOD_MS);
}

start().catch(() => (byId("no-answer").hidden = false));
