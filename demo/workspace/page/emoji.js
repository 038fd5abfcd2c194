// The emoji of status messages as drawings, because a bare server has no emoji font.

import { drawing, h } from "./dom.js";

const disc = (fill, stroke) => [["circle", { cx: 12, cy: 12, r: 9.5, fill, ...(stroke ? { stroke, "stroke-width": 1.5 } : {}) }]];
const line = (d, stroke = "#fff", width = 2.6) => ["path", { d, stroke, "stroke-width": width, fill: "none", "stroke-linecap": "round", "stroke-linejoin": "round" }];
const box = (fill) => ["rect", { x: 2.5, y: 2.5, width: 19, height: 19, rx: 4.5, fill }];
const hourglass = [
  line("M6 3h12M6 21h12", "#8a6d3b", 2.4),
  ["path", { d: "M7.5 3.5h9c0 4-3 6-3.6 8.5.6 2.5 3.6 4.5 3.6 8.500h-9c0-4 3-6 3.6-8.500C10.5 9.5 7.5 7.5 7.5 3.500z", fill: "#cfe8f5", stroke: "#8a6d3b", "stroke-width": 1.2 }],
  ["path", { d: "M9 6.500h6c-.6 1.8-2 3-3 4.6-1-1.6-2.4-2.8-3-4.600zM8.5 20c.4-2 2-3.2 3.5-3.8 1.5.6 3.1 1.8 3.5 3.800z", fill: "#e6a23c" }],
];
const question = (fill) => [...disc(fill), line("M9 9.300c.3-1.7 1.6-2.5 3-2.5 1.7 0 3 1 3 2.6 0 2.1-3 2.3-3 4.3", "#fff", 2.2), ["circle", { cx: 12, cy: 17.2, r: 1.5, fill: "#fff" }]];

const DRAWN = {
  white_check_mark: [box("#2b9a58"), line("M7 12.500l3.5 3.500L17 8.5")],
  heavy_check_mark: [line("M4 13l5.5 5.500L20 6.5", "#2b9a58", 3.4)],
  x: [line("M5 5l14 14M19 5L5 19", "#d92d3a", 4)],
  warning: [
    ["path", { d: "M12 2.500c.8 0 1.4.4 1.8 1.100l8 14.600c.8 1.4-.2 3.1-1.8 3.100H4c-1.6 0-2.6-1.7-1.8-3.100l8-14.600c.4-.7 1-1.1 1.8-1.100z", fill: "#f5b400" }],
    line("M12 8.500v5.5", "#3b2c00", 2.4),
    ["circle", { cx: 12, cy: 17.6, r: 1.5, fill: "#3b2c00" }],
  ],
  rotating_light: [
    ["path", { d: "M6 17v-5a6 6 0 0112 0v5z", fill: "#e5383b" }],
    ["rect", { x: 4, y: 17, width: 16, height: 4, rx: 1.2, fill: "#5b6470" }],
    line("M12 1.500v2M3.5 5l1.6 1.500M20.5 5l-1.6 1.5", "#e5383b", 2),
    line("M9.5 13a2.8 2.8 0 012.5-2.8", "#ffd9d9", 1.6),
  ],
  hourglass_flowing_sand: hourglass,
  hourglass: hourglass,
  large_green_circle: disc("#2fb344"),
  large_yellow_circle: disc("#f6c90e"),
  large_orange_circle: disc("#f58220"),
  red_circle: disc("#e02d3c"),
  large_blue_circle: disc("#2f7de1"),
  large_purple_circle: disc("#8e4ec6"),
  white_circle: disc("#f4f5f7", "#9aa3ad"),
  black_circle: disc("#30343b"),
  no_entry: [...disc("#d92d3a"), line("M7 12h10", "#fff", 3.6)],
  no_entry_sign: [["circle", { cx: 12, cy: 12, r: 8.5, fill: "none", stroke: "#d92d3a", "stroke-width": 3 }], line("M6.2 6.200l11.6 11.6", "#d92d3a", 3)],
  octagonal_sign: [["path", { d: "M8 2.500h8l5.5 5.500v8L16 21.500H8L2.5 16V8z", fill: "#d92d3a" }], line("M7 12h10", "#fff", 3)],
  question: question("#d92d3a"),
  grey_question: question("#8b95a1"),
  information_source: [box("#2f7de1"), line("M12 11v6", "#fff", 2.6), ["circle", { cx: 12, cy: 7.3, r: 1.6, fill: "#fff" }]],
  arrows_counterclockwise: [box("#2f7de1"), line("M17 10.500a5.4 5.4 0 00-9.6-1.700M7 13.500a5.4 5.4 0 009.6 1.7", "#fff", 2), line("M7 5.800v3.200h3.200M17 18.200V15h-3.2", "#fff", 2)],
  arrow_right: [box("#5b83b0"), line("M6.5 12h10M13 8l4 4-4 4", "#fff", 2.2)],
  arrow_forward: [box("#2b9a58"), ["path", { d: "M9 7l8 5-8 5z", fill: "#fff" }]],
  double_vertical_bar: [box("#5b83b0"), line("M9 7.500v9M15 7.500v9", "#fff", 2.8)],
  black_square_for_stop: [box("#5b83b0"), ["rect", { x: 7.5, y: 7.5, width: 9, height: 9, fill: "#fff" }]],
  lock: [["rect", { x: 4.5, y: 10.5, width: 15, height: 11, rx: 2, fill: "#e6a23c" }], line("M8 10.500V7.500a4 4 0 018 0v3", "#8b95a1", 2.4)],
  bar_chart: [box("#eef1f4"), line("M7.5 18v-5M12 18V7M16.5 18v-8", "#2f7de1", 2.8)],
  chart_with_upwards_trend: [box("#eef1f4"), line("M5.5 17l4.5-5 3.5 3L18.5 7", "#d92d3a", 2.2)],
  bell: [["path", { d: "M12 2.500a6 6 0 016 6V14l2 3.500H4L6 14V8.500a6 6 0 016-6z", fill: "#e6a23c" }], ["circle", { cx: 12, cy: 20, r: 2, fill: "#b97a1b" }]],
  mag: [["circle", { cx: 10, cy: 10, r: 6.5, fill: "#d9ecf7", stroke: "#5b6470", "stroke-width": 2.2 }], line("M15 15l6 6", "#5b6470", 3)],
  memo: [["rect", { x: 4, y: 2.5, width: 14, height: 19, rx: 2, fill: "#f4f5f7", stroke: "#9aa3ad", "stroke-width": 1.2 }], line("M7.5 8h7M7.5 12h7M7.5 16h4", "#7b8794", 1.6)],
  eyes: [
    ["ellipse", { cx: 7, cy: 12, rx: 4.6, ry: 7, fill: "#fff", stroke: "#5b6470", "stroke-width": 1.4 }],
    ["ellipse", { cx: 17, cy: 12, rx: 4.6, ry: 7, fill: "#fff", stroke: "#5b6470", "stroke-width": 1.4 }],
    ["circle", { cx: 5.8, cy: 13, r: 2.3, fill: "#30343b" }],
    ["circle", { cx: 15.8, cy: 13, r: 2.3, fill: "#30343b" }],
  ],
  paperclip: [line("M8 12.500l6.500-6.500a3 3 0 0 1 4.300 4.300L10.500 18.500a4.800 4.800 0 0 1-6.800-6.800L11 4.5", "#5b6470", 2)],
  raised_hand: [["path", { d: "M7 12V5.500a1.400 1.400 0 0 1 2.800 0V10h.6V3.800a1.400 1.400 0 0 1 2.800 0V10h.6V5a1.400 1.400 0 0 1 2.800 0v6h.6V8a1.300 1.300 0 0 1 2.600 0v7c0 4-2.600 7-6.600 7-3 0-4.600-1.300-6-3.600L3.700 14a1.500 1.500 0 0 1 2.400-1.700z", fill: "#f2b84b", stroke: "#b07d1a", "stroke-width": 0.8 }]],
  stopwatch: [["circle", { cx: 12, cy: 13.5, r: 8, fill: "#f4f5f7", stroke: "#5b6470", "stroke-width": 2 }], line("M12 13.500V9M10 2.500h4M12 2.500v2.5", "#5b6470", 2)],
};

const CHARACTERS = {
  tada: "\u{1F389}", rocket: "\u{1F680}", fire: "\u{1F525}", wrench: "\u{1F527}", hammer_and_wrench: "\u{1F6E0}",
  package: "\u{1F4E6}", wave: "\u{1F44B}", pray: "\u{1F64F}", "+1": "\u{1F44D}", "-1": "\u{1F44E}",
  point_right: "\u{1F449}", snowflake: "\u2744", zap: "\u26A1", shield: "\u{1F6E1}", movie_camera: "\u{1F3A5}", link: "\u{1F517}",
};

const NAMES_BY_CHARACTER = new Map([
  ["\u2705", "white_check_mark"], ["\u2714", "heavy_check_mark"], ["\u274C", "x"], ["\u26A0", "warning"], ["\u{1F6A8}", "rotating_light"],
  ["\u23F3", "hourglass_flowing_sand"], ["\u231B", "hourglass"], ["\u{1F7E2}", "large_green_circle"], ["\u{1F7E1}", "large_yellow_circle"],
  ["\u{1F7E0}", "large_orange_circle"], ["\u{1F534}", "red_circle"], ["\u{1F535}", "large_blue_circle"], ["\u26AA", "white_circle"],
  ["\u26D4", "no_entry"], ["\u2753", "question"], ["\u2754", "grey_question"], ["\u2139", "information_source"], ["\u{1F512}", "lock"],
  ["\u{1F4CA}", "bar_chart"], ["\u{1F514}", "bell"], ["\u23F1", "stopwatch"],
]);
const EMOJI_CHARACTERS = new RegExp(`(${[...NAMES_BY_CHARACTER.keys()].join("|")})\\uFE0F?`, "gu");

// Returns true if a font has this character: it then looks different from a character that no font has.
const pictured = new Map();
function isPictured(character) {
  if (!pictured.has(character)) {
    const drawn = [character, "\u{1FFFE}"].map((text) => {
      const canvas = document.createElement("canvas");
      canvas.width = canvas.height = 24;
      const pen = canvas.getContext("2d", { willReadFrequently: true });
      pen.font = "18px sans-serif";
      pen.fillText(text, 0, 18);
      return pen.getImageData(0, 0, 24, 24).data.join();
    });
    pictured.set(character, drawn[0] !== drawn[1]);
  }
  return pictured.get(character);
}

// Returns the node for `:name:`; an unknown name is shown as it is.
export function emoji(name) {
  if (DRAWN[name]) return drawing(DRAWN[name], `:${name}:`, "emoji");
  if (CHARACTERS[name] && isPictured(CHARACTERS[name])) return h("span", { title: `:${name}:` }, CHARACTERS[name]);
  return document.createTextNode(`:${name}:`);
}

// Returns the nodes of a plain text; emoji that are written as characters are drawn too.
export function withEmojiCharacters(text) {
  const parts = text.split(EMOJI_CHARACTERS);
  return parts.filter((part) => part !== "").map((part) => (NAMES_BY_CHARACTER.has(part) ? emoji(NAMES_BY_CHARACTER.get(part)) : document.createTextNode(part)));
}
