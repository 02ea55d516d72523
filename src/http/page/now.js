// Owns: the screen "Now": is it receiving, is anything stuck, is anything lost.

import { chart } from "./chart.js";
import { el, render } from "./dom.js";
import { age, ago, grouped, millis, rate, since, size } from "./format.js";

/** Sendbird waits so many seconds for an answer. */
const SENDBIRD_WAITS = 1;

/** What the names of alerts begin with. */
const PREFIX = "SendbirdBridge";

export const [id, title] = ["now", "Now"];

/** Shows an overview. */
export function update(main, overview) {
  render(main, findings(overview), charts(overview), sinks(overview), el("div", { class: "columns" }, journal(overview), refused(overview)));
}

/** Whether one of these alerts is among the findings. */
const has = (found, ...alerts) => found.some(({ alert }) => alerts.includes(alert.replace(PREFIX, "")));

/** How urgent they are; the most urgent is the first. */
const level = (found) => found[0]?.severity ?? "ok";

/** The section of the runbook about an alert. */
export const runbook = (alert) => `${new URL("runbook.html", import.meta.url)}#${alert.toLowerCase()}`;

function findings({ findings: all }) {
  const item = ({ alert, severity, text, action }) =>
    el(
      "li",
      { class: `finding ${severity}` },
      el("p", null, el("span", { class: `badge ${severity}` }, severity), " ", el("strong", null, text)),
      el("p", null, "Do: ", action.startsWith("sendbird-bridge ") ? el("code", null, action) : action, " · ", el("a", { href: runbook(alert) }, `Runbook: ${alert.replace(PREFIX, "")}`)),
    );
  return el("section", { id: "findings", hidden: all.length === 0, "aria-label": "What needs a person" }, el("h2", null, "What needs a person"), el("ul", null, all.map(item)));
}

function charts({ deliveries, at }) {
  const { step_seconds: stepSeconds, slots, deliveries_per_second: accepted, refused_per_second: refusals, answer_seconds_p99: p99 } = deliveries.history;
  const common = { slots, stepSeconds };
  const linear = (values) => {
    const most = Math.max(1e-9, ...values);
    return (value) => value / most;
  };
  // From a millisecond to Sendbird's second, as each ten times more takes the same height.
  const logarithmic = (seconds) => (Math.log10(Math.max(seconds, 0.001)) + 3) / 3;
  return el(
    "section",
    { id: "rates", "aria-label": "Deliveries and answers" },
    el("h2", null, "Deliveries ", el("span", { class: "quiet" }, deliveries.last_at ? ["last ", ago(deliveries.last_at, at), `, ${grouped(deliveries.total)} since the start`] : "none since the start")),
    el(
      "div",
      { class: "charts" },
      chart({ ...common, title: "Accepted", values: accepted, text: rate, scale: linear(accepted) }),
      chart({ ...common, title: "Answers, p99", values: p99, text: millis, scale: logarithmic, lines: [{ at: SENDBIRD_WAITS, name: "limit" }, { at: 0.1, name: "grid" }, { at: 0.01, name: "grid" }], note: "red: Sendbird’s second" }),
      chart({ ...common, title: "Refused", values: refusals, text: rate, scale: linear(refusals) }),
    ),
  );
}

function facts(...rows) {
  const row = ([name, value, isBad]) => el("div", { class: isBad ? "bad" : null }, el("dt", null, name), el("dd", null, value));
  return el("dl", { class: "facts" }, rows.filter(Boolean).map(row));
}

function sinks({ sinks: all, findings: found, at }) {
  if (all.length === 0) return el("section", { id: "sinks" }, el("h2", null, "Sinks"), el("p", null, "No sink is configured: events are kept and can be read from the feed."));
  return el("section", { id: "sinks" }, el("h2", null, "Sinks"), el("div", { class: "cards" }, all.map((sink) => card(sink, found.filter((finding) => finding.sink === sink.name), at))));
}

function card(sink, found, now) {
  const state = found.length === 0 && !sink.connected ? "warning" : level(found);
  const caughtUp = { 0: "yes" }[sink.caught_up_in_seconds] ?? (sink.caught_up_in_seconds === null ? "no: it gets no less" : `in ${age(sink.caught_up_in_seconds)}`);
  const [link, alert] = sink.connected ? ["connected for ", null] : ["no connection for ", `${PREFIX}SinkDisconnected`];
  return el(
    "article",
    { class: `card ${state}`, "aria-label": `Sink ${sink.name}` },
    el("h3", null, sink.name, sink.name !== sink.type && [" ", el("span", { class: "quiet" }, sink.type)]),
    el("p", { class: `state ${sink.connected ? "ok" : "warning"}` }, link, since(sink.connected_changed_at, now), alert && [" · ", el("a", { href: runbook(alert) }, "runbook")]),
    facts(
      ["Pending", sink.pending_records === 0 ? "0" : `${grouped(sink.pending_records)}, oldest ${age(sink.oldest_pending_seconds)}`, has(found, "SinkBehind")],
      ["Caught up", caughtUp, sink.caught_up_in_seconds === null],
      ["Published", [rate(sink.published_per_second), sink.last_publish_at ? [", last ", ago(sink.last_publish_at, now)] : ", none since the start"]],
      ["In flight", grouped(sink.in_flight)],
      ["Stuck", [grouped(sink.stuck_records), sink.waiting_full && ", reads no further"], has(found, "EventsStuck", "WaitingFull")],
      ["Dead letters", grouped(sink.dead_letters_total), has(found, "DeadLettersGrowing", "DeadLettersWaiting")],
      sink.resends_pending > 0 && ["To resend", [grouped(sink.resends_pending), sink.active_replays > 0 && `, replays: ${sink.active_replays}`]],
    ),
    sink.dead_letters.length > 0 &&
      el("ul", { class: "reasons" }, sink.dead_letters.map((group) => el("li", null, el("code", null, group.reason), `: ${grouped(group.count)}, last `, ago(group.last_at, now)))),
    sink.last_failure && failure(sink, now),
  );
}

function failure({ failing_since: failing, last_failure: last }, now) {
  return el(
    "div",
    { class: `failure ${failing ? "" : "quiet"}` },
    el("p", null, failing ? ["Failing for ", since(failing, now), ", last "] : "Works again; last failure ", ago(last.at, now), ": ", el("code", null, last.reason)),
    el("p", { class: "said" }, last.detail),
  );
}

function journal({ journal: all, findings: found }) {
  const own = found.filter((finding) => has([finding], "NotReady", "JournalFilling", "DiskLow", "EventsDamaged"));
  const share = all.bytes / all.max_bytes;
  const used = `${size(all.bytes)} of ${size(all.max_bytes)}`;
  return el(
    "section",
    { id: "journal" },
    el("h2", null, "Journal"),
    el("div", { class: `card ${level(own)}` },
      el("meter", { min: 0, max: 1, high: 0.75, value: share.toFixed(4), "aria-label": `${used} used` }, used),
      facts(
        ["State", all.health, has(own, "NotReady")],
        ["Used", `${used} (${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %)`],
        ["Events kept", grouped(all.records)],
        ["Full in", all.full_in_seconds === null ? "does not grow" : `${age(all.full_in_seconds)} at this rate`, has(own, "JournalFilling")],
        ["Disk free", size(all.disk_free_bytes), has(own, "DiskLow")],
        ["Damaged", grouped(all.damaged_records), has(own, "EventsDamaged")],
      ),
    ),
  );
}

function refused({ refused: all, at }) {
  const row = (refusal) =>
    el("tr", null, el("th", { scope: "row" }, el("code", null, refusal.reason)), el("td", { class: "number" }, grouped(refusal.last_hour)), el("td", { class: "number" }, grouped(refusal.total)), el("td", null, refusal.last_at && ago(refusal.last_at, at)), el("td", null, refusal.last_source ?? "unknown"));
  const rows = [...all].sort((a, b) => Date.parse(b.last_at ?? 0) - Date.parse(a.last_at ?? 0)).map(row);
  const head = ["Reason", "Last hour", "Total", "Last", "Source"].map((name) => el("th", { scope: "col" }, name));
  return el(
    "section",
    { id: "refused" },
    el("h2", null, "Refused"),
    el("div", { class: "card" }, rows.length === 0 ? el("p", null, "Nothing was refused since the start.") : el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Refused by reason" }, el("table", null, el("thead", null, el("tr", null, head)), el("tbody", null, rows)))),
  );
}
