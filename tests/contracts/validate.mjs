// Owns: the judgement of Ajv (JSON Schema 2020-12) and of the AsyncAPI parser.
// Promises: every schema is valid by its meta-schema and in Ajv's strict mode, every event is valid by the schema of any
// envelope, by that of its type and, its data, by that which its `dataschema` names; the AsyncAPI document has no error and
// no warning but those named here. Prints what is wrong, and exits 1 then.
//
// Usage: node validate.mjs DOCUMENTS EVENTS, with a directory of documents and a file of envelopes, one a line

import fs from "node:fs";
import path from "node:path";
import { createRequire } from "node:module";

// The modules are installed elsewhere.
const require = createRequire(path.join(process.env.CONTRACTS_HOME, "package.json"));
const Ajv2020 = require("ajv/dist/2020").default;
const addFormats = require("ajv-formats").default;
const { Parser, DiagnosticSeverity } = require("@asyncapi/parser");

const [documents, events] = process.argv.slice(2);
const read = (name) => JSON.parse(fs.readFileSync(path.join(documents, name), "utf8"));
let faults = 0;
const fault = (text) => {
  faults += 1;
  console.log(`FAULT: ${text}`);
};

function schemas() {
  const ajv = new Ajv2020({ strict: true, allowUnionTypes: true, strictRequired: false, allErrors: true });
  addFormats(ajv);
  // Sizes of whole numbers in Rust, which say nothing more than the schema's `minimum`.
  for (const format of ["uint", "uint8", "uint16", "uint32", "uint64"]) {
    ajv.addFormat(format, { type: "number", validate: (number) => Number.isInteger(number) && number >= 0 });
  }
  const byId = new Map();
  const names = fs.readdirSync(path.join(documents, "schemas"));
  for (const name of names) {
    const schema = read(path.join("schemas", name));
    try {
      const validate = ajv.compile(schema);
      if (schema.$id) byId.set(schema.$id, validate);
    } catch (error) {
      fault(`${name}: ${error.message}`);
    }
  }
  console.log(`Ajv: ${names.length} schemas`);
  return byId;
}

function judge(byId) {
  const lines = fs.readFileSync(events, "utf8").split("\n").filter((line) => line !== "");
  const base = "urn:sendbird-bridge:schema:";
  const types = new Set();
  for (const line of lines) {
    const event = JSON.parse(line);
    types.add(event.type);
    const by = (id, value) => {
      const validate = byId.get(id);
      if (validate === undefined) fault(`${event.id}: there is no schema ${id}`);
      else if (!validate(value)) fault(`${event.id} by ${id}: ${JSON.stringify(validate.errors)}`);
    };
    by(`${base}envelope:v1`, event);
    by(`${base}${event.type}:v1`, event);
    by(event.dataschema, event.data);
  }
  if (types.size !== 13) fault(`expected events of 13 types, but found ${types.size}`);
  console.log(`Ajv: ${lines.length} events of ${types.size} types`);
}

async function asyncapi() {
  // The bridge speaks 3.0 until its readers do 3.1; traits are deprecated nowhere but in the linter's taste.
  const accepted = new Set(["asyncapi-latest-version"]);
  const { document, diagnostics } = await new Parser().parse(read("asyncapi.json"));
  for (const found of diagnostics.filter((found) => !accepted.has(found.code))) {
    const severity = DiagnosticSeverity ? DiagnosticSeverity[found.severity] : found.severity;
    fault(`asyncapi.json: ${severity} ${found.code} at ${found.path.join(".")}: ${found.message}`);
  }
  if (document === undefined) return;
  const messages = document.messages().all();
  console.log(
    `AsyncAPI parser: version ${document.version()}, ${document.servers().all().length} servers, ` +
      `${document.channels().all().length} channels, ${messages.length} messages`,
  );
  for (const message of messages) {
    if (!message.hasPayload() || !message.headers() || !message.contentType()) fault(`${message.id()}: it lacks something`);
  }
}

judge(schemas());
await asyncapi();
process.exit(faults === 0 ? 0 : 1);
