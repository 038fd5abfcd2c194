// The structured blocks: rich_text, table, plan and task_card, markdown.

import { h, drawing } from "./dom.js";
import { emoji } from "./emoji.js";
import { link, mention, mrkdwn, plainText } from "./mrkdwn.js";

const STYLES = { bold: "strong", italic: "em", strike: "s", code: "code" };

function styled(node, style) {
  let result = node;
  for (const [name, tag] of Object.entries(STYLES)) if (style?.[name]) result = h(tag, {}, result);
  return result;
}

const LEAVES = {
  link: (element) => styled(link(element.url, element.text), element.style),
  emoji: (element) => emoji(element.name),
  user: (element, names) => mention(`@${names.user(element.user_id) ?? element.user_id}`, element.user_id === names.me),
  channel: (element, names) => mention(`#${names.channel(element.channel_id) ?? element.channel_id}`),
  usergroup: (element) => mention(`@${element.usergroup_id}`),
  broadcast: (element) => mention(`@${element.range}`, true),
};

function leaves(element, names) {
  return (element.elements ?? []).map((entry) => LEAVES[entry.type]?.(entry, names) ?? styled(document.createTextNode(entry.text ?? ""), entry.style));
}

function part(element, names) {
  if (element.type === "rich_text_preformatted") return h("pre", {}, leaves(element, names));
  if (element.type === "rich_text_quote") return h("blockquote", {}, leaves(element, names));
  if (element.type !== "rich_text_list") return h("div", { class: "rich-section" }, leaves(element, names));
  const items = (element.elements ?? []).map((item) => h("li", {}, leaves(item, names)));
  const list = h(element.style === "ordered" ? "ol" : "ul", {}, items);
  list.style.marginLeft = `${(element.indent ?? 0) * 24}px`;
  return list;
}

export function richText(block, names) {
  return h("div", { class: "rich" }, (block.elements ?? []).map((element) => part(element, names)));
}

export function table(block, names) {
  const settings = block.column_settings ?? [];
  const rows = block.rows.map((row, number) =>
    h("tr", {}, row.map((entry, column) => {
      const content = entry.type === "rich_text" ? richText(entry, names) : (entry.text ?? String(entry.value ?? ""));
      const cell = h(number === 0 ? "th" : "td", { class: settings[column]?.is_wrapped ? "" : "no-wrap" }, content);
      cell.style.textAlign = settings[column]?.align ?? "left";
      return cell;
    })),
  );
  return h("div", { class: "table" }, h("table", {}, rows));
}

const TASK_SHAPES = {
  pending: [["circle", { cx: 12, cy: 12, r: 8, fill: "none", stroke: "currentColor", "stroke-width": 2, "stroke-dasharray": "3 3" }]],
  in_progress: [["circle", { cx: 12, cy: 12, r: 8, fill: "none", stroke: "currentColor", "stroke-width": 3, "stroke-dasharray": "30 21" }]],
  complete: [["circle", { cx: 12, cy: 12, r: 9.5, fill: "currentColor" }], ["path", { d: "M7.5 12.5l3 3 6-6.5", stroke: "#fff", "stroke-width": 2.2, fill: "none" }]],
  error: [["circle", { cx: 12, cy: 12, r: 9.5, fill: "currentColor" }], ["path", { d: "M8.5 8.500l7 7m0-7l-7 7", stroke: "#fff", "stroke-width": 2.2 }]],
};

export function taskCard(task, names) {
  const parts = ["details", "output"].filter((name) => task[name]).map((name) => h("div", { class: `task-${name}` }, richText(task[name], names)));
  const sources = (task.sources ?? []).map((source) => link(source.url, source.text));
  return h(
    "div",
    { class: `task ${task.status}`, data: { status: task.status } },
    drawing(TASK_SHAPES[task.status] ?? TASK_SHAPES.pending, task.status.replace("_", " "), "task-icon"),
    h("div", { class: "task-body" }, h("div", { class: "task-title" }, plainText(task.title)), parts, sources.length ? h("div", { class: "task-sources" }, sources) : null),
  );
}

export function plan(block, names) {
  const tasks = block.tasks ?? [];
  const done = tasks.filter((task) => task.status === "complete").length;
  return h(
    "div",
    { class: "plan" },
    h("div", { class: "plan-title" }, h("span", {}, plainText(block.title)), h("span", { class: "plan-count" }, `${done} of ${tasks.length}`)),
    tasks.map((task) => taskCard(task, names)),
  );
}

// Shows a markdown block by translating headings, lists, bold and links to mrkdwn; anything else is shown as written.
export function markdown(block, names) {
  const text = block.text
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;")
    .replace(/\*\*(.+?)\*\*/g, "*$1*")
    .replace(/^#{1,6} +(.+)$/gm, "*$1*")
    .replace(/^[*-] +/gm, "\u2022 ")
    .replace(/\[([^\]\n]+)\]\((https?:[^)\s]+)\)/g, "<$2|$1>");
  return h("div", { class: "section" }, h("div", { class: "section-text" }, mrkdwn(text, names)));
}
