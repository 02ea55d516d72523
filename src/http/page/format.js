// Owns: numbers, ages and sizes as people say them, as the commands do.

import { el } from "./dom.js";

/** An age or a span, of seconds. */
export function age(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const [minutes, hours] = [Math.floor(whole / 60), Math.floor(whole / 3600)];
  if (minutes === 0) return `${whole} s`;
  if (hours === 0) return `${minutes} min`;
  if (hours < 10 && minutes % 60 > 0) return `${hours} h ${minutes % 60} min`;
  return hours < 72 ? `${hours} h` : `${Math.floor(hours / 24)} d`;
}

/** A number with its digits in groups of three. */
export const grouped = (number) => Math.round(number).toLocaleString("en-US");

/** A rate, of so many a second. */
export const rate = (perSecond) => `${perSecond >= 100 ? grouped(perSecond) : perSecond.toFixed(1)}/s`;

/** A size, of bytes. */
export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = bytes < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(bytes) / 10));
  const value = bytes / 1024 ** power;
  return `${power === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[power]}`;
}

/** A time to wait, of seconds. */
export const millis = (seconds) => (seconds < 1 ? `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms` : `${seconds.toFixed(2)} s`);

/** How long ago something was, with the moment itself to read on. Both are as the API writes them. */
export function ago(at, now) {
  return el("time", { datetime: at, title: at }, `${age((Date.parse(now) - Date.parse(at)) / 1000)} ago`);
}

/** For how long something has been so. */
export function since(at, now) {
  return el("time", { datetime: at, title: `since ${at}` }, age((Date.parse(now) - Date.parse(at)) / 1000));
}
