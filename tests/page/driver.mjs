// Owns: a Chromium in which a test looks at the operations page.
// Promises: reads a command as a line of JSON, [name, argument...], and answers each with a line, {"value"} or {"fault"}. What the
// browser complained about (errors on the console, uncaught exceptions, violations of the Content-Security-Policy, requests to
// another host) is kept for the command "complaints". Ends, with the browser, when its standard input does.
//
// Usage: node driver.mjs CHROMIUM

import fs from "node:fs";
import path from "node:path";
import readline from "node:readline";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

/** How long is waited for an element, in milliseconds. */
const PATIENCE = 15_000;

const axe = fs.readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
// Its sandbox needs rights that root in a container lacks; what it loads here is our own.
const browser = await chromium.launch({ executablePath: process.argv[2], args: ["--no-sandbox", "--force-color-profile=srgb"] });
const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, locale: "en-GB", timezoneId: "UTC" });
context.setDefaultTimeout(PATIENCE);
const complaints = [];
let host = null;
let asked = 0;
await context.addInitScript(() => {
  document.addEventListener("securitypolicyviolation", (event) => {
    console.error(`violation of ${event.violatedDirective}: ${event.blockedURI} ${event.sample}`);
  });
});
const page = await context.newPage();
page.on("console", (message) => message.type() === "error" && complaints.push(`console: ${message.text()} (${message.location().url})`));
page.on("pageerror", (error) => complaints.push(`exception: ${error.stack}`));
page.on("dialog", (dialog) => {
  complaints.push(`dialog: ${dialog.message()}`);
  dialog.dismiss();
});
page.on("request", (request) => {
  asked += 1;
  const url = new URL(request.url());
  if (url.protocol !== "data:" && url.host !== host) complaints.push(`request to another host: ${url}`);
});

const commands = {
  /** Opens an address. Gives the milliseconds to the first paint, and the bytes of all that was loaded. */
  async open(url) {
    host = new URL(url).host;
    await page.goto(url, { waitUntil: "load" });
    await page.waitForFunction(() => performance.getEntriesByType("paint").length > 0);
    return page.evaluate(() => {
      const loaded = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
      return {
        first_paint_ms: performance.getEntriesByName("first-paint")[0].startTime,
        bytes: loaded.filter(({ name }) => !name.endsWith("/overview")).reduce((sum, { encodedBodySize }) => sum + encodedBodySize, 0),
      };
    });
  },
  /** The text of an element as it is shown. */
  text: (selector) => page.locator(selector).first().innerText(),
  /** The value of an attribute. */
  attribute: (selector, name) => page.locator(selector).first().getAttribute(name),
  /** How many elements there are. */
  count: (selector) => page.locator(selector).count(),
  async click(selector) {
    await page.locator(selector).first().click();
  },
  async fill(selector, text) {
    await page.locator(selector).first().fill(text);
  },
  async press(key) {
    await page.keyboard.press(key);
  },
  /** The value of an expression. */
  evaluate: (expression) => page.evaluate(expression),
  /** How many requests there were. */
  requests: () => asked,
  /** Makes DIR/NAME-WIDTH-SCHEME.png of the whole page. Gives, for each width, by how many pixels it is too wide. */
  async screenshots(dir, name) {
    const tooWide = [];
    fs.mkdirSync(dir, { recursive: true });
    for (const width of [360, 1280]) {
      await page.setViewportSize({ width, height: 800 });
      for (const colorScheme of ["light", "dark"]) {
        await page.emulateMedia({ colorScheme });
        await page.screenshot({ path: path.join(dir, `${name}-${width}-${colorScheme}.png`), fullPage: true });
      }
      tooWide.push(await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth));
    }
    await page.emulateMedia({ colorScheme: "light" });
    return tooWide;
  },
  /** What axe-core finds, in both schemes: for each rule that is broken its impact, name and the elements. */
  async axe() {
    const found = [];
    for (const colorScheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme });
      await page.evaluate(axe);
      const { violations } = await page.evaluate(() => globalThis.axe.run({ runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"] }));
      found.push(...violations.map(({ impact, id, nodes }) => `${impact}: ${id} (${colorScheme}): ${nodes.map(({ html }) => html.slice(0, 200)).join(" ")}`));
    }
    await page.emulateMedia({ colorScheme: "light" });
    return found;
  },
  /** What the browser complained about. */
  complaints: () => complaints,
};

for await (const line of readline.createInterface({ input: process.stdin })) {
  const [name, ...args] = JSON.parse(line);
  let answer;
  try {
    answer = { value: (await commands[name](...args)) ?? null };
  } catch (error) {
    answer = { fault: `${name} ${JSON.stringify(args)}: ${error.message}` };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await browser.close();
