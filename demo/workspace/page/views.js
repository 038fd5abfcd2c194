// What the app shows beside messages: modals with their forms, and its Home tab.

import { h, toast } from "./dom.js";
import { showBlock } from "./blocks.js";
import { textObject } from "./mrkdwn.js";
import { post } from "./store.js";

function contextOf(store, view) {
  return {
    names: store.names,
    press: (action) => post("/client/press", { user: store.user, view_id: view.id, ...action }),
  };
}

// The fields of a form: each element reads its own value.
function field(block, names) {
  const { element } = block;
  const id = `field-${block.block_id}`;
  let control;
  if (element.options) {
    const options = element.options.map((option) => h("option", { value: option.value }, option.text.text));
    control = h("select", { id }, block.optional ? h("option", { value: "" }, "not set") : null, options);
    control.value = element.initial_option?.value ?? (block.optional ? "" : element.options[0].value);
  } else {
    const properties = { id, maxlength: element.max_length ?? 3000, placeholder: element.placeholder?.text ?? "" };
    control = element.multiline ? h("textarea", { rows: "3", ...properties }) : h("input", { type: "text", ...properties });
    control.value = element.initial_value ?? "";
  }
  const chosen = () => element.options.find((option) => option.value === control.value) ?? null;
  const error = h("p", { class: "field-error", role: "alert" });
  const hint = block.hint ? h("p", { class: "hint" }, textObject(block.hint, names)) : null;
  const optional = block.optional ? h("span", { class: "optional" }, " (optional)") : null;
  const node = h("div", { class: "field-row", data: { block: block.block_id } }, h("label", { for: id }, textObject(block.label, names), optional), control, hint, error);
  const value = () => ({ [element.action_id]: { type: element.type, ...(element.options ? { selected_option: chosen() } : { value: control.value || null }) } });
  return { node, value, complain: (text) => (error.textContent = text) };
}

export class ModalView {
  constructor(dialog, store) {
    this.dialog = dialog;
    this.store = store;
    this.view = null;
    dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      this.close();
    });
  }

  show(view) {
    if (!view) {
      this.view = null;
      if (this.dialog.open) this.dialog.close();
      return;
    }
    if (this.view?.hash === view.hash) return;
    this.view = view;
    this.fields = new Map();
    const context = contextOf(this.store, view);
    const nodes = view.blocks.map((block) => {
      if (block.type !== "input") return showBlock(block, context);
      const one = field(block, this.store.names);
      this.fields.set(block.block_id, one);
      return one.node;
    });
    const close = h("button", { type: "button", class: "button", data: { view: "close" }, onclick: () => this.close() }, view.close?.text ?? "Cancel");
    const submit = view.submit ? h("button", { type: "submit", class: "button primary filled", data: { view: "submit" } }, view.submit.text) : null;
    const form = h("form", { class: "modal-form", onsubmit: (event) => this.submit(event, submit) }, h("h2", {}, view.title.text), h("div", { class: "modal-body" }, nodes), h("div", { class: "actions" }, close, submit));
    this.dialog.replaceChildren(form);
    if (!this.dialog.open) this.dialog.showModal();
  }

  async close() {
    const { id } = this.view ?? {};
    this.show(null);
    if (id) await post("/client/view/close", { user: this.store.user, view_id: id }).catch((error) => toast(error.message));
  }

  async submit(event, button) {
    event.preventDefault();
    for (const one of this.fields.values()) one.complain("");
    button.classList.add("busy");
    button.disabled = true;
    try {
      const values = Object.fromEntries([...this.fields].map(([id, one]) => [id, one.value()]));
      const { answer } = await post("/client/view", { user: this.store.user, view_id: this.view.id, values });
      for (const [id, text] of Object.entries(answer.errors ?? {})) this.fields.get(id)?.complain(text);
    } catch (error) {
      toast(error.message);
    } finally {
      button.classList.remove("busy");
      button.disabled = false;
    }
  }
}

export function showHome(element, store) {
  const view = store.views.home;
  if (!view) return element.replaceChildren(h("p", { class: "empty" }, "The app has published no Home tab yet."));
  const context = contextOf(store, view);
  element.replaceChildren(h("article", { class: "home-view" }, view.blocks.map((block) => showBlock(block, context))));
}
