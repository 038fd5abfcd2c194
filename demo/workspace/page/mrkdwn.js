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
  if (target.startsWith("!date")) return h("time", {}, label || target);
  if (target.startsWith("!")) return mention(label || `@${target.slice(1).split("^")[0]}`, true);
  return link(unescaped(target), label);
}

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
