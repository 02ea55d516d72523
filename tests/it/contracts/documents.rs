//! The contracts: the documents that the program makes of itself, and what may never change about them.
//!
//! With the environment variable `BLESS` set, the documents of `docs/contracts` are written instead of compared, and those of
//! a version of which none are kept yet are put into `tests/fixtures/contracts`; read the difference before you commit it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use sendbird_bridge::sendbird::category::Category;
use sendbird_bridge::sendbird::schema::{OBJECTS, SchemaDocument};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use crate::support::bridge::Config;
use crate::support::http::Request;
use crate::support::process::run;
use crate::support::samples::samples;
use crate::support::schema_compatibility::breaks;
use crate::support::schemas::{faults, judge, validator};

const BASE: &str = "urn:sendbird-bridge:schema:";
const REFRESH: &str = "BLESS=1 cargo test --test it contracts::documents::";

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn blessing() -> bool {
    std::env::var_os("BLESS").is_some()
}

/// The JSON files of a folder by name, without the extension.
fn texts(folder: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let files = entries.map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap()))
        .collect()
}

/// The same, read.
fn json_files(folder: &Path) -> BTreeMap<String, Value> {
    let read = |(name, text): (String, String)| {
        let json = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, json)
    };
    texts(folder).into_iter().map(read).collect()
}

/// The schemas of now, by subject.
fn schemas() -> BTreeMap<String, Value> {
    SchemaDocument::all().map(|published| (published.subject(), published.document(BASE))).collect()
}

/// What the program prints.
fn printed(arguments: &[&str]) -> String {
    let ended = run(&[&["schema"], arguments].concat());
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    ended.stdout.iter().map(|line| format!("{line}\n")).collect()
}

/// Where each document is kept below `docs/contracts`, and as the program prints it.
fn documents() -> BTreeMap<String, String> {
    let mut documents = BTreeMap::new();
    for published in SchemaDocument::all() {
        let subject = published.subject();
        let choice = match published {
            SchemaDocument::Envelope => vec![],
            SchemaDocument::Type(_) => vec!["--type", &subject],
            SchemaDocument::Data(_) => vec!["--object", &subject],
        };
        documents.insert(format!("schemas/{subject}.json"), printed(&[&["envelope"], &choice[..]].concat()));
    }
    // What these say depends on which clients were built in.
    if cfg!(all(feature = "kafka", feature = "rabbitmq", feature = "nats")) {
        let config = project("docs/contracts/bridge.toml");
        documents.insert("schemas/config.json".into(), printed(&["config"]));
        for name in ["asyncapi", "openapi"] {
            documents.insert(format!("{name}.json"), printed(&[name, "--config", config.to_str().unwrap()]));
        }
    }
    documents
}

#[test]
fn the_committed_documents_are_those_of_the_code() {
    let folder = project("docs/contracts");
    let mut stale = Vec::new();
    for (name, document) in documents() {
        let path = folder.join(&name);
        if blessing() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &document).unwrap();
        }
        if fs::read_to_string(&path).unwrap_or_default() != document {
            stale.push(name);
        }
    }
    let command = format!("{REFRESH}the_committed_documents");
    assert!(stale.is_empty(), "these differ from what the code makes now; write them with `{command}`: {stale:?}");
    let kept = json_files(&folder.join("schemas"));
    let known = schemas();
    let strays: Vec<_> = kept.keys().filter(|name| *name != "config" && !known.contains_key(*name)).collect();
    assert!(strays.is_empty(), "no document has these names: {strays:?}");
}

#[test]
fn no_document_holds_a_secret() {
    for (name, document) in documents() {
        for secret in ["made-up", "0123456789abcdef0123456789abcdef01234567"] {
            assert!(!document.contains(secret), "{secret} in {name}");
        }
    }
}

#[test]
fn every_fixture_is_valid_by_the_schemas() {
    let mut envelopes = json_files(&project("tests/fixtures/golden"));
    assert_eq!(envelopes.len(), Category::ALL.len());
    for (name, text) in texts(&project("tests/fixtures/variants")) {
        let variant: BTreeMap<String, Box<RawValue>> = serde_json::from_str(&text).unwrap();
        if let Some(envelope) = variant.get("envelope") {
            envelopes.insert(name, readable(envelope));
        }
    }
    assert!(envelopes.len() > 60, "only {} envelopes", envelopes.len());
    for (name, envelope) in envelopes {
        let faults = faults(&envelope);
        assert!(faults.is_empty(), "{name}: {faults:#?}");
    }
}

/// An envelope as JSON. What is in `raw` may be more than a reader of JSON takes: half a surrogate pair, a hundred levels.
fn readable(envelope: &RawValue) -> Value {
    type Members = BTreeMap<String, Box<RawValue>>;
    serde_json::from_str(envelope.get()).unwrap_or_else(|_unreadable| {
        let mut members: Members = serde_json::from_str(envelope.get()).unwrap();
        let mut data: Members = serde_json::from_str(members["data"].get()).unwrap();
        data.insert("raw".into(), to_raw_value(&json!({})).unwrap());
        members.insert("data".into(), to_raw_value(&data).unwrap());
        serde_json::from_str(&serde_json::to_string(&members).unwrap()).unwrap()
    })
}

#[test]
fn a_broken_envelope_is_found() {
    let golden = json_files(&project("tests/fixtures/golden"));
    let good = &golden["direct_call.end"];
    judge(good);
    let broken = |change: &dyn Fn(&mut Value)| {
        let mut envelope = good.clone();
        change(&mut envelope);
        let faults = faults(&envelope);
        assert!(!faults.is_empty(), "{envelope}");
    };
    broken(&|it| it["id"] = "no UUID".into());
    broken(&|it| it["time"] = "2026-01-01T00:00:00Z".into());
    broken(&|it| it["replayed"] = false.into());
    broken(&|it| it["traceparent"] = "00-x".into());
    broken(&|it| it["type"] = "com.sendbird.calls.room.create".into());
    broken(&|it| it["dataschema"] = "urn:sendbird-bridge:schema:call:v1".into());
    broken(&|it| it["data"]["call"]["duration_ms"] = "1".into());
    broken(&|it| it["data"]["call"] = Value::Null);
    broken(&|it| it["data"]["room"] = json!({}));
    broken(&|it| drop(it["data"].as_object_mut().unwrap().remove("raw")));
    broken(&|it| drop(it["data"]["call"].as_object_mut().unwrap().remove("call_id")));
    // What a later version may add is no fault.
    let mut grown = good.clone();
    grown["later"] = 1.into();
    grown["data"]["later"] = json!({});
    grown["data"]["call"]["later"] = Value::Null;
    judge(&grown);
}

#[test]
fn the_admin_endpoint_serves_what_the_program_prints() {
    let bridge = Config::new().start();
    let index = bridge.admin("/schemas").json();
    let paths: Vec<&str> =
        index["schemas"].as_array().unwrap().iter().map(|schema| schema["path"].as_str().unwrap()).collect();
    assert_eq!(paths.len(), 1 + OBJECTS.len() + 13 + 1, "{paths:?}");
    for (published, path) in SchemaDocument::all().zip(&paths) {
        assert_eq!(*path, format!("/schemas/{}:v1", published.subject()));
        let answer = bridge.admin(path);
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/schema+json")), "{path}");
        assert_eq!(answer.json(), published.document(BASE));
        assert_eq!(bridge.admin(&path.replace(':', "%3A")).body, answer.body);
    }
    let config: Value = serde_json::from_str(&printed(&["config"])).unwrap();
    assert_eq!(bridge.admin("/schemas/config").json(), config);
    for (path, version) in [("/asyncapi.json", "asyncapi"), ("/openapi.json", "openapi")] {
        let answer = bridge.admin(path);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert!(answer.json()[version].as_str().unwrap().starts_with("3."), "{path}");
        assert_eq!(Request::new("HEAD", path).send_head(bridge.admin), 200);
        assert_eq!(Request::post(path).send(bridge.admin).problem(405).header("allow"), Some("GET, HEAD"));
    }
    for path in ["/schemas/", "/schemas/canary:v1", "/schemas/room", "/openapi", "/schemas/..%2fopenapi.json"] {
        bridge.admin(path).problem(404);
    }
}

#[test]
fn documents_ask_for_the_admin_token() {
    let bridge = Config::new().set("admin.token", "'let-me-in'").start();
    for path in ["/schemas", "/schemas/room:v1", "/schemas/config", "/asyncapi.json", "/openapi.json"] {
        assert_eq!(bridge.admin(path).problem(401).header("www-authenticate"), Some("Bearer"), "{path}");
        let request = Request::get(path).header("authorization", "Bearer let-me-in");
        assert_eq!(request.send(bridge.admin).status, 200, "{path}");
    }
}

/// With the admin endpoint's address as its base, `dataschema` is where the schema of `data` is.
#[test]
fn a_dataschema_can_be_followed() {
    let config = Config::new().fixed_address();
    let address = config.start();
    let base = format!("{}/schemas/", address.admin_url());
    drop(address.stop());
    let bridge = config.set("envelope.schema_base", &format!("'{base}'")).start();
    for body in samples().values() {
        bridge.deliver(body).stored();
    }
    for event in bridge.events() {
        let dataschema = event.envelope["dataschema"].as_str().unwrap();
        let path = dataschema.strip_prefix(&bridge.admin_url()).unwrap();
        let schema = bridge.admin(path).json();
        assert_eq!(schema["$id"], dataschema);
        assert!(validator(&schema).is_valid(&event.envelope["data"]));
    }
}

#[test]
fn a_document_of_what_does_not_exist_is_wrong_usage() {
    for arguments in [
        &["envelope", "--type", "room:canary"][..],
        &["envelope", "--object", "canary"],
        &["envelope", "--type", "room:create", "--object", "room"],
    ] {
        assert_eq!(run(&[&["schema"], arguments].concat()).code(), Some(64), "{arguments:?}");
    }
    let by_category = printed(&["envelope", "--type", "room:create"]);
    assert_eq!(printed(&["envelope", "--type", "com.sendbird.calls.room.create"]), by_category);
}

// ---- what may never change within version 1 ----------------------------------------------------------------------------

/// The versions of which schemas and events are kept, with their folders.
fn released() -> Vec<(String, PathBuf)> {
    let folder = project("tests/fixtures/contracts");
    let mut versions: Vec<(String, PathBuf)> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path))
        .collect();
    versions.sort();
    versions
}

#[test]
fn schemas_and_events_of_this_version_are_kept() {
    let folder = project("tests/fixtures/contracts").join(concat!("v", env!("CARGO_PKG_VERSION")));
    if blessing() && !folder.exists() {
        fs::create_dir_all(folder.join("schemas")).unwrap();
        fs::create_dir_all(folder.join("events")).unwrap();
        for (subject, schema) in schemas() {
            fs::write(folder.join(format!("schemas/{subject}.json")), format!("{schema:#}\n")).unwrap();
        }
        for name in json_files(&project("tests/fixtures/golden")).keys() {
            let file = format!("{name}.json");
            fs::copy(project("tests/fixtures/golden").join(&file), folder.join("events").join(&file)).unwrap();
        }
    }
    let command = format!("{REFRESH}schemas_and_events");
    assert!(folder.exists(), "expected {}, but found none; make it with `{command}`", folder.display());
    assert!(!json_files(&folder.join("schemas")).is_empty());
    assert_eq!(json_files(&folder.join("events")).len(), 13);
}

#[test]
fn schemas_have_only_grown_since_each_version() {
    let now = schemas();
    for (version, folder) in released() {
        for (subject, then) in json_files(&folder.join("schemas")) {
            let Some(now) = now.get(&subject) else { panic!("{version}: the schema {subject} is gone") };
            let broken = breaks(&then, now);
            assert!(
                broken.is_empty(),
                "{subject} of {version} may only grow within version 1 (docs/envelope.md), but:\n{}",
                broken.join("\n")
            );
            assert_eq!(now["$id"], then["$id"]);
        }
    }
}

#[test]
fn events_of_each_version_are_valid_for_ever() {
    let type_of = |envelope: &Value| envelope["type"].as_str().expect("a type").to_owned();
    for (version, folder) in released() {
        let then = json_files(&folder.join("schemas"));
        for (name, envelope) in json_files(&folder.join("events")) {
            let faults = faults(&envelope);
            assert!(faults.is_empty(), "{version}, {name}: {faults:#?}");
            assert!(then.contains_key(&type_of(&envelope)), "{version} has no schema of {name}");
        }
        // And the other way round: who validates by that version's schemas accepts what is written now. A type that is
        // younger than the version is an envelope to it.
        for (name, envelope) in json_files(&project("tests/fixtures/golden")) {
            let of_type = then.get_key_value(&type_of(&envelope));
            for (subject, schema) in
                [("envelope", &then["envelope"])].into_iter().chain(of_type.map(|(k, v)| (&**k, v)))
            {
                assert!(validator(schema).is_valid(&envelope), "{name} by {subject} of {version}");
            }
        }
    }
}

#[test]
fn growth_is_no_break() {
    let old = SchemaDocument::Type(Category::DirectCallDial).document(BASE);
    assert_eq!(breaks(&old, &old), [""; 0]);
    let mut new = old.clone();
    new["$id"] = "another".into();
    new["properties"]["later"] = json!({ "type": "string", "enum": ["a"] });
    new["$defs"]["Call"]["properties"]["later"] = json!({ "type": ["object", "null"] });
    new["$defs"]["Call"]["properties"]["end_result"]["examples"] = json!(["another"]);
    new["$defs"]["Call"]["description"] = "another".into();
    new["$defs"]["Call"]["additionalProperties"] = true.into();
    let renamed = new["$defs"].as_object_mut().unwrap().remove("Call").unwrap();
    new["$defs"]["Talk"] = renamed;
    new["$defs"]["DirectCallData"]["properties"]["call"]["$ref"] = "#/$defs/Talk".into();
    assert_eq!(breaks(&old, &new), [""; 0]);
}

#[test]
fn every_kind_of_break_is_found() {
    let old = SchemaDocument::Envelope.document(BASE);
    let found = |change: &dyn Fn(&mut Value), expected: &str| {
        let mut new = old.clone();
        change(&mut new);
        let broken = breaks(&old, &new);
        assert!(broken.iter().any(|it| it.contains(expected)), "expected {expected}, but found {broken:?}");
    };
    let call = |new: &mut Value, name: &str, to: Value| new["$defs"]["Call"]["properties"][name] = to;
    let remove = |from: &mut Value, name: &str| drop(from.as_object_mut().unwrap().remove(name));
    found(&|it| remove(&mut it["properties"], "subject"), "/subject: removed");
    found(&|it| remove(&mut it["$defs"]["Call"]["properties"], "ended_by"), "/data/call/ended_by: removed");
    found(&|it| call(it, "duration_ms", json!({ "type": "string" })), "/data/call/duration_ms: retyped");
    found(&|it| call(it, "call_id", json!({ "type": "string" })), "/data/call/call_id: retyped");
    found(&|it| it["properties"]["data"] = json!({ "type": "object" }), "/data/raw: removed");
    let required = |of: &mut Value, name: &str| of["required"].as_array_mut().unwrap().push(name.into());
    found(&|it| required(it, "subject"), "/subject: newly required");
    found(&|it| required(&mut it["$defs"]["Call"], "later"), "/data/call/later: newly required");
    found(&|it| it["required"] = json!(["id"]), "/source: no longer required");
    found(&|it| it["$defs"]["Data"]["required"] = json!([]), "/data/raw: no longer required");
    let closed = json!({ "type": ["string", "null"], "enum": ["completed", null] });
    found(&|it| call(it, "end_result", closed.clone()), "/data/call/end_result: narrowed by enum");
    found(&|it| it["properties"]["type"]["const"] = "one".into(), "/type: narrowed by const");
    found(&|it| it["properties"]["partitionkey"]["maxLength"] = 80.into(), "/partitionkey: narrowed by maxLength");
    found(&|it| it["properties"]["id"]["pattern"] = "^x$".into(), "/id: pattern changed");
    found(&|it| remove(&mut it["properties"]["time"], "pattern"), "/time: widened, pattern");
    found(&|it| it["additionalProperties"] = false.into(), "additionalProperties was closed");
    found(&|it| it["$defs"]["Data"]["unevaluatedProperties"] = false.into(), "narrowed by unevaluatedProperties");
    found(&|it| it["properties"]["later"] = false.into(), "/later: forbidden");
    found(&|it| it["$defs"]["Items"]["additionalProperties"]["type"] = "integer".into(), "retyped");
    found(&|it| it["$defs"]["Data"]["not"] = json!({ "required": ["x"] }), "narrowed by not");
    let participant =
        |it: &mut Value| drop(it["$defs"]["Data"]["properties"]["participant"]["anyOf"].as_array_mut().unwrap().pop());
    found(&|it| participant(it), "/data/participant: anyOf has 1 choices");
}
