// Owns: small charts of the last minutes.

import { el, svg } from "./dom.js";

const [WIDTH, HEIGHT] = [300, 72];

/**
 * A chart of numbers, the oldest first, null where there is none. `text` writes a number; `scale` gives the height of one, from
 * 0 to 1; `lines` are numbers to draw a line at.
 */
export function chart({ title, values, slots, stepSeconds, text, scale, lines = [], note }) {
  const known = values.filter((value) => value !== null);
  const [last, most] = [values.at(-1) ?? null, known.length ? Math.max(...known) : null];
  const minutes = Math.round((slots * stepSeconds) / 60);
  const summary = most === null ? "nothing yet" : `now ${last === null ? "none" : text(last)}, at most ${text(most)}`;
  return el(
    "figure",
    { class: "chart" },
    el("figcaption", null, el("span", null, title), el("strong", null, last === null ? "–" : text(last))),
    svg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": `${title}, last ${minutes} minutes: ${summary}` },
      lines.map(({ at, name }) => {
        const y = height(scale(at));
        return svg("line", { class: `rule ${name}`, x1: 0, x2: WIDTH, y1: y, y2: y });
      }),
      shapes(values, slots, scale),
    ),
    el("p", { class: "quiet axis" }, el("span", null, `${minutes} min ago`), el("span", null, note ?? (most === null ? "nothing yet" : `at most ${text(most)}`)), el("span", null, "now")),
  );
}

const height = (share) => (HEIGHT - 2 - Math.min(1, Math.max(0, share)) * (HEIGHT - 6)).toFixed(1);

/** A surface and a line for each run of numbers; the newest is at the right. */
function shapes(values, slots, scale) {
  const step = WIDTH / (slots - 1);
  const runs = [[]];
  values.forEach((value, index) => {
    if (value === null) runs.push([]);
    else runs.at(-1).push([WIDTH - (values.length - 1 - index) * step, height(scale(value))]);
  });
  return runs.filter((run) => run.length > 0).map((run) => {
    // One number alone is a short line.
    const points = run.length > 1 ? run : [[run[0][0] - step / 2, run[0][1]], [run[0][0] + step / 2, run[0][1]]];
    const path = points.map(([x, y]) => `${x.toFixed(1)} ${y}`).join("L");
    const [first, last] = [points[0][0].toFixed(1), points.at(-1)[0].toFixed(1)];
    return svg("g", null, svg("path", { class: "area", d: `M${first} ${HEIGHT}L${path}L${last} ${HEIGHT}Z` }), svg("path", { class: "line", d: `M${path}` }));
  });
}
