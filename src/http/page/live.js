// Owns: the screen "Live": the feed as it comes.
// Promises: at most 200 rows; says when it skips events, and continues where it was after a pause. A page that nobody sees reads
// nothing.

import { open as request } from "./api.js";
import { el } from "./dom.js";
import { envelope, visible } from "./envelope.js";
import { grouped } from "./format.js";

export const [id, title] = ["live", "Live"];

const MOST_ROWS = 200;

/** How many of the latest events it begins with. */
const BEGINS_WITH = 50;

/** How often rows are added, in milliseconds. */
const PERIOD = 250;

/** After how many milliseconds a feed that ended is opened again. */
const RETRY = 2000;

/** For how many milliseconds a feed may be silent. The bridge writes something every 15 s. */
const SILENT_FOR = 45_000;

const CATEGORIES = ["direct_call:dial", "direct_call:accept", "direct_call:end", "room:create", "room:delete", "room:participant_enter", "room:participant_exit", "room:participant_disconnect", "room:invitation_send", "room:invitation_accept", "room:invitation_decline", "room:invitation_cancel", "room:invitation_no_answer"];

let parts = null;
let feed = null;
let position = null;
let waiting = [];
let skipped = 0;
/** The next time that rows are added, and that the feed is opened again. */
let [flushing, reopening] = [0, 0];
let isPaused = false;
let journal = null;

/** Shows the screen. */
export function open(main, overview) {
  const category = el("select", { id: "category" }, el("option", { value: "" }, "all"), CATEGORIES.map((name) => el("option", null, name)));
  const key = el("input", { id: "key", placeholder: "call_id or room_id", autocomplete: "off", spellcheck: "false" });
  const application = el("input", { id: "application", autocomplete: "off", spellcheck: "false" });
  const pause = el("button", { type: "button", id: "pause", "aria-pressed": "false" }, "Pause");
  const state = el("p", { id: "feed-state", class: "quiet", role: "status" });
  const rows = el("ol", { id: "feed", class: "events", "aria-label": "Events, the newest first" });
  parts = { category, key, application, pause, state, rows };
  const field = (label, input) => el("div", null, el("label", { for: input.id }, label), input);
  const form = el("form", { class: "fields" }, field("Category", category), field("Key", key), field("Application", application), pause);
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const input of [category, key, application]) input.addEventListener("change", restart);
  pause.addEventListener("click", () => {
    isPaused = !isPaused;
    pause.textContent = isPaused ? "Continue" : "Pause";
    pause.setAttribute("aria-pressed", String(isPaused));
    if (isPaused) stop("Paused.");
    else follow();
  });
  main.replaceChildren(el("section", null, el("h2", null, "Live"), form, state, rows));
  isPaused = false;
  journal = overview.journal;
  restart();
}

export function update(_main, overview) {
  journal = overview.journal;
}

export function close() {
  stop("");
  parts = null;
}

export function visibility(isHidden) {
  if (isHidden) stop("");
  else if (!isPaused) follow();
}

function stop(why) {
  feed?.abort();
  feed = null;
  clearTimeout(reopening);
  flush();
  parts.state.textContent = why;
}

/** From the beginning: with a key, of all that is kept. */
function restart() {
  const { first_position: first, last_position: last } = journal;
  position = Math.max(first - 1, parts.key.value.trim() ? 0 : last - BEGINS_WITH, 0);
  parts.rows.replaceChildren();
  [waiting, skipped] = [[], 0];
  if (!isPaused) follow();
}

async function follow() {
  feed?.abort();
  clearTimeout(reopening);
  const own = new AbortController();
  feed = own;
  let silence = 0;
  const listen = () => {
    clearTimeout(silence);
    silence = setTimeout(() => own.abort(new Error("the feed is silent")), SILENT_FOR);
  };
  listen();
  const query = new URLSearchParams({ after: position });
  if (parts.key.value.trim()) query.set("key", parts.key.value.trim());
  if (parts.category.value) query.set("type", parts.category.value);
  try {
    const response = await request(`events?${query}`, own.signal);
    parts.state.textContent = "Following what is durable, published or not.";
    let rest = "";
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (feed !== own) return;
      listen();
      if (done) break;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) take(block);
    }
    throw new Error("the feed ended");
  } catch (error) {
    if (feed !== own) return;
    parts.state.textContent = `${error.message}; opening it again.`;
    reopening = setTimeout(follow, RETRY);
  } finally {
    clearTimeout(silence);
  }
}

/** A block of the stream: an event, or a comment about positions that are missing. */
function take(block) {
  const field = (name) => block.split("\n").find((line) => line.startsWith(name))?.slice(name.length);
  const comment = field(": ");
  if (comment && comment !== "alive") waiting.push({ comment });
  const data = field("data: ");
  if (!data) return;
  const row = { position: Number(field("id: ")), data };
  position = row.position;
  const application = parts.application.value.trim().toLowerCase();
  if (application && !data.toLowerCase().includes(`"application_id":"${application}"`)) return;
  waiting.push(row);
  // One row is left for saying so.
  const surplus = waiting.length - (MOST_ROWS - 1);
  if (surplus > 0) skipped += waiting.splice(0, surplus).length;
  if (!flushing) flushing = setTimeout(flush, PERIOD);
}

function flush() {
  clearTimeout(flushing);
  flushing = 0;
  if (skipped > 0) waiting.unshift({ comment: `${grouped(skipped)} events came faster than they can be shown, and were skipped` });
  const rows = waiting.map((row) => (row.comment ? el("li", { class: "note" }, row.comment) : line(row)));
  [waiting, skipped] = [[], 0];
  parts.rows.prepend(...rows.reverse());
  while (parts.rows.childElementCount > MOST_ROWS) parts.rows.lastElementChild.remove();
}

function line({ position: at, data }) {
  const event = JSON.parse(data);
  const details = el(
    "details",
    null,
    el(
      "summary",
      null,
      el("time", { datetime: event.receivedtime, title: `accepted at ${event.receivedtime}, position ${at}` }, event.receivedtime?.slice(11, 23)),
      el("code", null, visible(event.data?.category ?? event.type)),
      el("bdi", { class: "key" }, visible(event.partitionkey ?? "")),
    ),
  );
  // Made when it is wanted: most never are.
  details.addEventListener("toggle", () => details.append(...envelope(data).filter(Boolean)), { once: true });
  return el("li", null, details);
}
