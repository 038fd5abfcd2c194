// Turns Block Kit blocks into elements. `context` is { names, press(action) } and comes from the message.

import { h, localPath, toast } from "./dom.js";
import { link, textObject, plainText } from "./mrkdwn.js";
import { chart } from "./chart.js";
import { markdown, plan, richText, table, taskCard } from "./rich.js";

function imageAddress(element) {
  if (element.slack_file) return element.slack_file.id ? `/files/${element.slack_file.id}` : localPath(element.slack_file.url);
  const url = new URL(element.image_url, location.href);
  // The page may only load pictures of this machine; others are shown as links.
  return url.origin === location.origin || ["127.0.0.1", "localhost"].includes(url.hostname) ? url.href : null;
}

export function picture(address, description, className) {
  const image = h("img", { src: address, alt: description, class: className, loading: "lazy" });
  return h("button", { class: "picture", type: "button", title: "Show large", onclick: () => showLarge(address, description) }, image);
}

function showLarge(address, description) {
  const dialog = document.getElementById("picture");
  dialog.replaceChildren(h("img", { src: address, alt: description }));
  dialog.onclick = () => dialog.close();
  dialog.showModal();
}

function confirmed(texts, names, isDanger) {
  const dialog = document.getElementById("confirm");
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue === "yes");
    dialog.returnValue = "";
    const style = isDanger || texts.style === "danger" ? "danger" : "primary";
    const deny = h("button", { class: "button", value: "no" }, textObject(texts.deny, names));
    const confirm = h("button", { class: `button ${style} filled`, value: "yes" }, textObject(texts.confirm, names));
    const question = [h("h2", {}, textObject(texts.title, names)), h("p", {}, textObject(texts.text, names))];
    dialog.replaceChildren(h("form", { method: "dialog" }, question, h("div", { class: "actions" }, deny, confirm)));
    dialog.showModal();
  });
}

async function pressElement(control, element, block, context, selected) {
  if (element.confirm && !(await confirmed(element.confirm, context.names, element.style === "danger"))) return;
  control.classList.add("busy");
  control.disabled = true;
  try {
    await context.press({ action_id: element.action_id, block_id: block.block_id, selected });
  } catch (error) {
    toast(error.message);
  } finally {
    control.classList.remove("busy");
    control.disabled = false;
  }
}

function button(element, block, context) {
  const onclick = () => {
    if (element.url) window.open(element.url, "_blank", "noopener,noreferrer");
    pressElement(control, element, block, context);
  };
  const data = { action: element.action_id, value: element.value ?? "" };
  const control = h("button", { type: "button", class: `button ${element.style ?? ""}`, data, onclick }, textObject(element.text, context.names));
  return control;
}

function menu(element, block, context) {
  const options = element.options ?? (element.option_groups ?? []).flatMap((group) => group.options);
  const label = element.placeholder?.text ?? (element.type === "overflow" ? "More ..." : "Choose ...");
  const onchange = () => {
    const value = control.value;
    control.value = element.initial_option?.value ?? "";
    pressElement(control, element, block, context, value);
  };
  const entries = options.map((option) => h("option", { value: option.value }, option.text.text));
  const control = h("select", { class: "button menu", "aria-label": label, onchange }, h("option", { value: "", disabled: true }, label), entries);
  control.value = element.initial_option?.value ?? "";
  return control;
}

function element(entry, block, context) {
  if (entry.type === "button") return button(entry, block, context);
  if (entry.type === "image") return inlineImage(entry, "accessory-image");
  if (entry.options || entry.option_groups) return menu(entry, block, context);
  return h("span", { class: "unsupported" }, `[${entry.type} is not shown in this workspace]`);
}

function inlineImage(entry, className) {
  const address = imageAddress(entry);
  return address ? h("img", { src: address, alt: entry.alt_text, title: entry.alt_text, class: className }) : link(entry.image_url, entry.alt_text);
}

const SHOW = {
  header: (block, context) => h("h3", { class: "header-block" }, textObject(block.text, context.names)),
  divider: () => h("hr"),
  section: (block, context) => {
    const text = block.text ? h("div", { class: "section-text" }, textObject(block.text, context.names)) : null;
    const fields = (block.fields ?? []).map((field) => h("div", { class: "field" }, textObject(field, context.names)));
    const body = h("div", { class: "section-body" }, text, fields.length ? h("div", { class: "fields" }, fields) : null);
    return h("div", { class: "section" }, body, block.accessory ? h("div", { class: "accessory" }, element(block.accessory, block, context)) : null);
  },
  context: (block, context) =>
    h("div", { class: "context" }, block.elements.map((entry) => (entry.type === "image" ? inlineImage(entry, "context-image") : h("span", {}, textObject(entry, context.names))))),
  actions: (block, context) => h("div", { class: "actions" }, block.elements.map((entry) => element(entry, block, context))),
  image: (block) => {
    const address = imageAddress(block);
    const caption = block.title ? h("figcaption", {}, plainText(block.title.text)) : null;
    return h("figure", {}, caption, address ? picture(address, block.alt_text, "large-image") : link(block.image_url, block.alt_text));
  },
  rich_text: (block, context) => richText(block, context.names),
  table: (block, context) => table(block, context.names),
  data_visualization: (block) => chart(block),
  plan: (block, context) => plan(block, context.names),
  task_card: (block, context) => h("div", { class: "plan" }, taskCard(block, context.names)),
  markdown: (block, context) => markdown(block, context.names),
  alert: (block, context) => h("div", { class: `alert ${block.level ?? "default"}` }, textObject(block.text, context.names)),
};

export function showBlock(block, context) {
  const show = SHOW[block.type];
  return show ? show(block, context) : h("div", { class: "unsupported" }, `[${block.type} blocks are not shown in this workspace]`);
}
