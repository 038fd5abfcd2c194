// The state of the page. One websocket keeps it up to date: everything on connection, then each change.

const HEADERS = { "Content-Type": "application/json", "X-Workspace-Client": "page" };

export async function post(path, body) {
  let response;
  try {
    response = await fetch(path, { method: "POST", headers: HEADERS, body: JSON.stringify(body) });
  } catch {
    throw new Error("The workspace does not answer. Is it still running?");
  }
  const isJson = response.headers.get("content-type")?.startsWith("application/json");
  const answer = isJson ? await response.json() : { error: await response.text() };
  if (!response.ok) throw new Error(answer.error || `The workspace answered ${response.status}`);
  return answer;
}

export async function get(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(await response.text());
  return response.json();
}

export class Store extends EventTarget {
  constructor(user) {
    super();
    this.user = user; // a name
    this.users = new Map();
    this.channels = new Map();
    this.messages = new Map(); // channel id -> Map(ts -> message)
    this.commands = [];
    this.app = { name: "", user_id: "", connected: false };
    this.team = { name: "" };
    this.views = { modals: [], home: null };
    this.socket = null;
    this.isReady = false;
    this.waiting = [];
    this.retryMs = 250;
  }

  get me() {
    return [...this.users.values()].find((user) => user.name === this.user);
  }

  get names() {
    return {
      me: this.me?.id,
      user: (id) => (id === this.app.user_id ? this.app.name : id === "USLACKBOT" ? "Slackbot" : this.users.get(id)?.name),
      channel: (id) => this.channels.get(id)?.name,
    };
  }

  emit(kind, detail) {
    this.dispatchEvent(new CustomEvent(kind, { detail }));
  }

  // Loads everything, one load after the other; changes that arrive meanwhile are newer and are applied afterwards.
  load() {
    const before = this.loading ?? Promise.resolve();
    this.loading = before.catch(() => {}).then(() => this.loadOnce());
    return this.loading;
  }

  async loadOnce() {
    this.isReady = false;
    const state = await get(`/client/state?user=${encodeURIComponent(this.user)}`);
    this.team = state.team;
    this.app = state.app;
    this.users = new Map(state.users.map((user) => [user.id, user]));
    this.channels = new Map(state.channels.map((channel) => [channel.id, channel]));
    this.commands = state.commands;
    this.views = state.views;
    this.messages = new Map(Object.entries(state.messages).map(([id, list]) => [id, new Map(list.map((message) => [message.ts, message]))]));
    this.isReady = true;
    this.emit("loaded");
    const waiting = this.waiting;
    this.waiting = [];
    waiting.forEach((change) => this.apply(change));
  }

  // Opens the websocket before it loads the state, so that no change is lost in between.
  connect() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/client/live?user=${encodeURIComponent(this.user)}`);
    this.socket = socket;
    this.isReady = false;
    this.waiting = [];
    socket.onopen = async () => {
      this.retryMs = 250;
      try {
        await this.load();
        this.emit("link", { isUp: true });
      } catch {
        socket.close();
      }
    };
    socket.onmessage = (frame) => {
      const change = JSON.parse(frame.data);
      if (this.isReady) this.apply(change);
      else this.waiting.push(change);
    };
    socket.onclose = () => {
      if (this.socket !== socket) return;
      this.emit("link", { isUp: false });
      setTimeout(() => this.socket === socket && this.connect(), this.retryMs);
      this.retryMs = Math.min(this.retryMs * 2, 4000);
    };
  }

  become(user) {
    this.user = user;
    const old = this.socket;
    this.socket = null;
    old?.close();
    this.connect();
  }

  apply(change) {
    switch (change.type) {
      case "message": {
        const message = { ...change.message, channel: change.channel };
        if (!this.messages.has(change.channel)) this.messages.set(change.channel, new Map());
        const known = this.messages.get(change.channel);
        const isNew = !known.has(message.ts);
        known.set(message.ts, message);
        this.emit("message", { message, isNew });
        break;
      }
      case "message_deleted":
        this.messages.get(change.channel)?.delete(change.ts);
        this.emit("deleted", change);
        break;
      case "app":
        this.app.connected = change.connected;
        this.emit("app");
        break;
      case "channel":
      case "commands":
        this.load().catch(() => this.socket?.close());
        break;
      case "view":
        this.views = { modals: change.modals, home: change.home };
        this.emit("view");
        break;
    }
  }
}
