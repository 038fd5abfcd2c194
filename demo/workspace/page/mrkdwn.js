// Turns Slack's mrkdwn into elements: bold, italics, strike, code, quotes, links, mentions, emoji. Anything else is text.

import { h, safeLink } from "./dom.js";
import { emoji, withEmojiCharacters } from "./emoji.js";

const INLINE = new RegExp(
  [
    "`([^`\\n]+)`",
    "<([^<>\\n]+)>",
    ":([a-z0-9_+'-]+):",
    "(?<![\\w*])\\*(?=\\S)([^*\\n]*[^*\\s])\\*(?![\\w*])",
    "(?<![\\w_])_(?=\\S)([^\\n]*?[^_\\s])_(?![\\w_])",
    "(?<![\\w~])~(?=\\S)([^~\\n]*[^~\\s])~(?![\\w~])",
  ].join("|"),
);

function unescaped(text) {
  return text.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");
}

function reference(body, names) {
  const [target, ...rest] = body.split("|");
  const label = unescaped(rest.join("|"));
  if (target.startsWith("@")) return mention(`@${names.user(target.slice(1)) ?? (label || target.slice(1))}`, target.slice(1) === names.me);
  if (target.startsWith("#")) return h("span", { class: "mention" }, `#${label || names.channel(target.slice(1)) || target.slice(1)}`);
  if (target.startsWith("!date^")) return moment(target, label);
  if (target.startsWith("!")) return mention(label || `@${target.slice(1).split("^")[0]}`, true);
  return link(unescaped(target), label);
}

// <!date^1700000000^{date_short_pretty} {time}|fallback>, in the reader's own time zone.
function moment(target, label) {
  const [, seconds, form] = target.split("^");
  const date = new Date(Number(seconds) * 1000);
  if (!form || Number.isNaN(date.getTime())) return h("time", {}, label);
  const shown = form.replace(/\{(\w+)\}/g, (whole, token) => DATE_TOKENS[token]?.(date) ?? whole);
  return h("time", { datetime: date.toISOString(), title: date.toLocaleString() }, shown);
}

const day = (date, options) => {
  const days = Math.round((new Date(date.toDateString()) - new Date(new Date().toDateString())) / 86400000);
  return { "-1": "yesterday", 0: "today", 1: "tomorrow" }[days] ?? date.toLocaleDateString([], options);
};
const clock = (date, options) => date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23", ...options });
const DATE_TOKENS = {
  date_num: (date) => date.toISOString().slice(0, 10),
  date: (date) => date.toLocaleDateString([], { month: "long", day: "numeric", year: "numeric" }),
  date_short: (date) => date.toLocaleDateString([], { month: "short", day: "numeric", year: "numeric" }),
  date_pretty: (date) => day(date, { month: "long", day: "numeric", year: "numeric" }),
  date_short_pretty: (date) => day(date, { month: "short", day: "numeric", year: "numeric" }),
  date_long_pretty: (date) => day(date, { weekday: "long", month: "long", day: "numeric", year: "numeric" }),
  time: (date) => clock(date),
  time_secs: (date) => clock(date, { second: "2-digit" }),
  ago: (date) => {
    const seconds = Math.max(0, Math.round((Date.now() - date) / 1000));
    if (seconds < 60) return "just now";
    const [size, unit] = [[86400, "day"], [3600, "hour"], [60, "minute"]].find(([one]) => seconds >= one);
    const count = Math.floor(seconds / size);
    return `${count} ${unit}${count === 1 ? "" : "s"} ago`;
  },
};

export function mention(text, isForMe = false) {
  return h("span", { class: isForMe ? "mention me" : "mention" }, text);
}

export function link(address, label) {
  const href = safeLink(address);
  if (!href) return document.createTextNode(label || address);
  return h("a", { href, target: "_blank", rel: "noopener noreferrer" }, label || address);
}

function inline(text, names) {
  const nodes = [];
  let rest = text;
  for (let found = INLINE.exec(rest); found; found = INLINE.exec(rest)) {
    nodes.push(...withEmojiCharacters(unescaped(rest.slice(0, found.index))));
    const [whole, code, angle, shortcode, bold, italic, strike] = found;
    if (code !== undefined) nodes.push(h("code", {}, ...codeContent(code, names)));
    else if (angle !== undefined) nodes.push(reference(angle, names));
    else if (shortcode !== undefined) nodes.push(emoji(shortcode));
    else if (bold !== undefined) nodes.push(h("strong", {}, inline(bold, names)));
    else if (italic !== undefined) nodes.push(h("em", {}, inline(italic, names)));
    else nodes.push(h("s", {}, inline(strike, names)));
    rest = rest.slice(found.index + whole.length);
  }
  nodes.push(...withEmojiCharacters(unescaped(rest)));
  return nodes;
}

// In code only links and mentions have a meaning.
function codeContent(text, names) {
  return text.split(/(<[^<>\n]+>)/).map((part, index) => (index % 2 ? reference(part.slice(1, -1), names) : document.createTextNode(unescaped(part))));
}

function lines(text, names) {
  const nodes = [];
  let quote = [];
  const endQuote = () => {
    if (quote.length) nodes.push(h("blockquote", {}, lines(quote.join("\n"), names)));
    quote = [];
  };
  const all = text.split("\n");
  all.forEach((one, index) => {
    if (one.startsWith("&gt;") || one.startsWith("> ")) {
      quote.push(one.replace(/^(&gt;|>) ?/, ""));
      return;
    }
    const quoted = quote.length > 0;
    endQuote();
    if (index > 0 && !quoted) nodes.push(h("br"));
    nodes.push(...inline(one, names));
  });
  endQuote();
  return nodes;
}

// names: { user(id), channel(id), me }
export function mrkdwn(text, names) {
  return text.split(/```\n?([\s\S]+?)\n?```\n?/).flatMap((part, index) => {
    if (index % 2) return [h("pre", {}, codeContent(part, names))];
    return part === "" ? [] : lines(part, names);
  });
}

export function textObject(object, names) {
  if (!object) return [];
  return object.type === "mrkdwn" ? mrkdwn(object.text, names) : plainText(object.text, object.emoji !== false);
}

export function plainText(text, withEmoji = true) {
  if (!withEmoji) return [document.createTextNode(text)];
  return text.split(/:([a-z0-9_+'-]+):/).flatMap((part, index) => (index % 2 ? [emoji(part)] : withEmojiCharacters(part)));
}
