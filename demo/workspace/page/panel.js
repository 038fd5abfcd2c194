// The side panel: buttons that break and fix something, listed by another service.

import { h } from "./dom.js";
import { get, post } from "./store.js";

const GROUPS = [
  ["Break something", (action) => action.style === "danger"],
  ["Fix it", (action) => action.style === "primary"],
  ["Other", (action) => !["danger", "primary"].includes(action.style)],
];

export class PanelView {
  constructor(element) {
    this.element = element;
    this.answer = h("p", { class: "panel-answer", role: "status" });
    this.busy = false;
  }

  async refresh() {
    try {
      const listing = await get("/panel");
      this.show(listing.ok ? listing.actions : [], listing.ok ? "" : listing.error);
    } catch {
      // The page already says that the workspace does not answer.
    }
  }

  show(actions, error) {
    this.element.hidden = !actions.length && !error;
    const groups = GROUPS.map(([title, belongs]) => [title, actions.filter(belongs)]).filter(([, list]) => list.length);
    this.element.replaceChildren(
      ...groups.map(([title, list]) => h("div", { class: "panel-group" }, h("h2", {}, title), list.map((action) => this.button(action)))),
      error ? h("p", { class: "panel-answer failed" }, error) : this.answer,
    );
  }

  button(action) {
    return h(
      "button",
      { type: "button", class: `panel-button ${action.style ?? ""}${action.active ? " active" : ""}`, title: action.help ?? "", data: { panel: action.id }, disabled: this.busy, onclick: () => this.press(action) },
      h("span", {}, action.label),
      action.active ? h("small", {}, "now") : null,
    );
  }

  async press(action) {
    this.busy = true;
    this.say(`${action.label} ...`, "");
    for (const button of this.element.querySelectorAll("button")) button.disabled = true;
    try {
      const answer = await post(`/panel/${encodeURIComponent(action.id)}`, {});
      this.say(answer.text, answer.ok ? "" : "failed");
    } catch (error) {
      this.say(error.message, "failed");
    }
    this.busy = false;
    await this.refresh();
  }

  say(text, kind) {
    this.answer.textContent = text;
    this.answer.className = `panel-answer ${kind}`;
  }
}
