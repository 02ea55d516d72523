// Owns: showing an event's envelope.
// Promises: what a delivery holds is text, and its characters that turn the direction of writing are shown as JSON escapes them;
// `raw` and what people wrote are folded until opened.

import { el } from "./dom.js";

/** An envelope as formatted JSON, with what was received folded. `text` is its JSON. */
export function envelope(text) {
  const { data, ...attributes } = JSON.parse(text);
  const { raw, ...known } = data ?? {};
  return [
    el("pre", { tabindex: 0, "aria-label": "Envelope" }, json({ ...attributes, data: known })),
    raw !== undefined && el("details", null, el("summary", null, "raw, as received"), el("pre", { tabindex: 0, "aria-label": "Raw delivery" }, json(raw))),
  ];
}

/** A value as JSON in lines. */
export const json = (value) => visible(JSON.stringify(value, null, 2));

/** Text without characters that are not seen and change how others are. */
export const visible = (text) => text.replace(/[\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`);
