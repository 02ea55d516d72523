// Owns: finding the diagrams in documents, and asking Mermaid's parser about each.
// Promises: a line for each diagram that is broken, with its file and the line on which it begins, and exit status 1 then.
// The same if a document that is named by --expect has no diagram.
//
// Usage: node diagrams.mjs [--expect FILE]... FILE...

import fs from "node:fs";
import path from "node:path";
import { parseArgs } from "node:util";
import { JSDOM } from "jsdom";

// Before it reads a label, Mermaid removes what a browser would run, and asks for a browser's document for that.
const { window } = new JSDOM("");
Object.assign(globalThis, { window, document: window.document });
const { default: mermaid } = await import("mermaid");

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { expect: { type: "string", multiple: true, default: [] } },
});
const expected = new Set(values.expect);
let count = 0;
let faults = 0;
const fault = (text) => {
  faults += 1;
  console.log(`FAULT: ${text}`);
};

for (const file of positionals) {
  const text = fs.readFileSync(file, "utf8");
  const blocks = [...text.matchAll(/^[ \t]*```mermaid\n(.*?)^[ \t]*```$/gms)];
  const begun = text.match(/^[ \t]*```+ *mermaid/gm)?.length ?? 0;
  if (begun !== blocks.length) fault(`${file}: ${begun} diagrams begin, but only ${blocks.length} end`);
  for (const block of blocks) {
    count += 1;
    expected.delete(path.normalize(file));
    const line = text.slice(0, block.index).split("\n").length;
    try {
      await mermaid.parse(block[1]);
    } catch (error) {
      fault(`${file}:${line}: ${error.message}`);
    }
  }
}
for (const file of expected) fault(`${file}: expected a diagram, but found none`);
console.log(`Mermaid: ${count} diagrams, ${faults} faults`);
process.exit(faults === 0 ? 0 : 1);
