// Owns: the frame of the page: the sentence on top, which screen is shown, when the bridge is asked.
// Promises: asks every two seconds, and not while the page is hidden.

import { Unauthorized, get, useToken } from "./api.js";
import { el, render } from "./dom.js";
import { age } from "./format.js";
import * as live from "./live.js";
import * as now from "./now.js";

/** How often the bridge is asked, in milliseconds. */
const PERIOD = 2000;

/** Each has an id, a title, and what is called when it is opened, closed, when there is an overview, when the page is hidden. */
const SCREENS = [now, live];

const part = (id) => document.getElementById(id);
const main = part("content");
let timer = 0;
let answeredAt = null;
let shown = null;
let overview = null;

async function ask() {
  clearTimeout(timer);
  try {
    overview = await get("overview");
    answeredAt = Date.now();
  } catch (error) {
    if (error instanceof Unauthorized) return login(error.message);
    lost(error);
    return again();
  }
  again();
  show();
}

/** A page that nobody sees asks nothing. */
function again() {
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(ask, PERIOD);
}

function show() {
  say(overview.sentence, level(overview));
  document.body.classList.remove("old");
  const instance = `${overview.version}, up ${age((Date.parse(overview.at) - Date.parse(overview.started_at)) / 1000)}`;
  render(part("asked"), overview.needs_a_person ? "A person is needed. " : "", el("time", { datetime: overview.at }, `As of ${overview.at.slice(11, 19)} UTC`));
  render(part("footer"), `sendbird-bridge ${instance} · `, el("a", { href: new URL("runbook.html", import.meta.url) }, "Runbook"));
  if (!shown) route();
  shown.update?.(main, overview);
}

/** Opens the screen that the address names: `#/ID`. */
function route() {
  // Another address of that kind is one within the screen.
  if (!overview || (shown && !location.hash.startsWith("#/"))) return;
  const id = location.hash.slice(2);
  const screen = SCREENS.find((screen) => screen.id === id) ?? now;
  shown?.close?.();
  shown = screen;
  const link = (screen) => el("a", { href: `#/${screen.id}`, "aria-current": screen === shown && "page" }, screen.title);
  render(part("screens"), SCREENS.map(link));
  main.replaceChildren();
  shown.open?.(main, overview);
  shown.update?.(main, overview);
}

/** How urgent the sentence is. */
function level({ findings, ready, sinks, deliveries }) {
  if (findings.length > 0) return findings[0].severity;
  if (!ready || sinks.some((sink) => !sink.connected)) return "warning";
  return deliveries.total === 0 ? "unknown" : "ok";
}

function say(sentence, severity) {
  const heading = part("sentence");
  // A screen reader reads it when it changes, and only then.
  if (heading.textContent !== sentence) heading.textContent = sentence;
  part("verdict").className = `verdict ${severity}`;
  document.title = `${sentence} sendbird-bridge`;
}

/** What is shown is old now. */
function lost(error) {
  const how = error.name === "TypeError" || error.name === "TimeoutError" ? "Is its process running, and is the way to it open?" : error.message;
  say(answeredAt ? `No answer from the bridge for ${age((Date.now() - answeredAt) / 1000)}.` : "No answer from the bridge.", "critical");
  document.body.classList.add("old");
  render(part("asked"), how);
}

function login(why) {
  shown?.close?.();
  shown = null;
  say("The bridge asks for its admin token.", "unknown");
  render(part("asked"), "");
  const form = el(
    "form",
    { class: "card login" },
    el("label", { for: "token" }, "Admin token"),
    el("input", { id: "token", type: "password", autocomplete: "current-password", required: true }),
    el("button", { type: "submit" }, "Show"),
    el("p", { class: "quiet", role: "alert" }, why),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    useToken(part("token").value);
    main.replaceChildren();
    ask();
  });
  main.replaceChildren(form);
  part("token").focus();
}

document.addEventListener("visibilitychange", () => {
  shown?.visibility?.(document.hidden);
  if (document.hidden) clearTimeout(timer);
  else ask();
});
addEventListener("hashchange", route);
ask();
