//! The published schemas: of the envelope, of the envelope of each known type, and of `data` by what it is about.
//!
//! They are made from the types that events are written with ([`Envelope`], [`Data`]), so they say what the code does.
//! Each name is what follows `envelope.schema_base` in a document's `$id`, which for the schemas of `data` is what
//! an event's `dataschema` says. Where they are served and how they are compared with older ones is for others to know.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::category::{Category, event_type};
use super::data::Data;
use crate::domain::envelope::{Envelope, object};

/// Where a document keeps what it refers to.
const DEFINITIONS: &str = "#/$defs/";

/// What an event can be about: what [`object`] gives.
pub const OBJECTS: [&str; 3] = ["direct_call", "room", "other"];

/// A published schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaDocument {
    /// Of any envelope.
    Envelope,
    /// Of the envelope of a known type.
    Type(Category),
    /// Of `data`, by one of [`OBJECTS`].
    Data(&'static str),
}

impl SchemaDocument {
    /// Every schema: of any envelope, of `data`, of the known types.
    pub fn all() -> impl Iterator<Item = Self> {
        let data = OBJECTS.into_iter().map(Self::Data);
        std::iter::once(Self::Envelope).chain(data).chain(Category::ALL.into_iter().map(Self::Type))
    }

    /// What the schema is of, without a version: `envelope`, `room`, `com.sendbird.calls.room.create`.
    pub fn subject(self) -> String {
        match self {
            Self::Envelope => "envelope".to_owned(),
            Self::Type(category) => event_type(category.label()),
            Self::Data(object) => object.to_owned(),
        }
    }

    /// What follows `envelope.schema_base` in its `$id`: the subject and `:v1`.
    pub fn name(self) -> String {
        format!("{}:v1", self.subject())
    }

    /// The document: JSON Schema 2020-12 that stands alone, with an `$id` that begins with `base`.
    pub fn document(self, base: &str) -> Value {
        let mut schema = match self {
            Self::Envelope => envelope(None),
            Self::Type(category) => envelope(Some(category)),
            Self::Data(object) => data(object),
        };
        schema["$id"] = format!("{base}{}", self.name()).into();
        if let Self::Type(category) = self {
            let name = Self::Data(object(category.label(), None)).name();
            schema["properties"]["dataschema"]["examples"] = json!([format!("{base}{name}")]);
        }
        schema
    }

    /// Adds the schema to the components of another document, where references begin with `prefix`
    /// (`#/components/schemas/`), under its subject, with what it refers to.
    pub fn add_to(self, components: &mut Map<String, Value>, prefix: &str) {
        let mut schema = match self {
            Self::Envelope => envelope(None),
            Self::Type(category) => envelope(Some(category)),
            Self::Data(object) => data(object),
        };
        point_to(&mut schema, prefix);
        if let Value::Object(root) = &mut schema {
            root.remove("$schema");
            if let Some(Value::Object(definitions)) = root.remove("$defs") {
                components.extend(definitions);
            }
        }
        components.insert(self.subject(), schema);
    }
}

/// The definition that `data` is in an envelope of this category, which has one shape for each group of categories.
pub fn data_definition(category: Option<Category>) -> &'static str {
    match category {
        Some(category) if category.is_call() => "DirectCallData",
        Some(category) if category.is_invitation() => "InvitationData",
        Some(category) if category.is_room() => "RoomData",
        _ => "Data",
    }
}

/// Of the envelope of any category, or of a known one.
fn envelope(category: Option<Category>) -> Value {
    let mut schema = root::<Envelope<'_, Data<'_>>>();
    schema["title"] = "Sendbird Calls event".into();
    schema["description"] = "A CloudEvents 1.0 envelope with data of version 1. Further attributes may come within \
                             version 1: ignore what you don't know."
        .into();
    let mut data = schema["$defs"]["Data"].take();
    if let Some(category) = category {
        let kind = event_type(category.label());
        schema["title"] = kind.clone().into();
        let prefix = if category.is_call() { "^direct_calls/" } else { "^rooms/" };
        let properties = &mut schema["properties"];
        properties["type"] =
            json!({ "type": "string", "const": kind, "description": properties["type"]["description"] });
        properties["subject"]["pattern"] = prefix.into();
        narrow(&mut data, object(category.label(), None));
        demand(&mut data, category);
    } else {
        narrow(&mut data, "other");
    }
    let name = data_definition(category);
    schema["$defs"][name] = data;
    schema["properties"]["data"]["$ref"] = format!("{DEFINITIONS}{name}").into();
    prune(&mut schema);
    schema
}

/// Of `data` that is about this object, whatever the category.
fn data(about: &str) -> Value {
    let mut schema = root::<Data<'_>>();
    narrow(&mut schema, about);
    schema["title"] = match about {
        "direct_call" => "Data of events about direct calls, version 1",
        "room" => "Data of events about rooms, version 1",
        _ => "Data of other events, version 1",
    }
    .into();
    prune(&mut schema);
    schema
}

fn root<T: JsonSchema>() -> Value {
    let generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let mut schema = generator.into_root_schema_for::<T>().to_value();
    unwrap_lines(&mut schema);
    schema
}

/// A description is a comment of the code, which is wrapped where the code is.
fn unwrap_lines(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            if let Some(Value::String(description)) = members.get_mut("description") {
                *description = description.replace('\n', " ");
            }
            members.values_mut().for_each(unwrap_lines);
        }
        Value::Array(items) => items.iter_mut().for_each(unwrap_lines),
        _ => {}
    }
}

/// Leaves out of the schema of [`Data`] what events about this object don't have.
fn narrow(data: &mut Value, about: &str) {
    data["description"] =
        "What an event says. Unknown is null, never a guess. Further members may come within version 1: \
                           ignore what you don't know."
            .into();
    let absent: &[&str] = match about {
        "direct_call" => &["room", "participant", "invitation"],
        "room" => &["call"],
        _ => &[],
    };
    if let Some(Value::Object(properties)) = data.get_mut("properties") {
        properties.retain(|name, _| !absent.contains(&name.as_str()));
    }
    let labels = Category::ALL.map(Category::label).into_iter();
    data["properties"]["category"]["examples"] =
        labels.filter(|label| about == "other" || object(label, None) == about).collect();
    if about != "direct_call" {
        data["dependentRequired"] = json!({ "room": ["participant", "invitation"] });
    }
}

/// Demands of the schema of [`Data`] what the normalizer promises for a known category.
fn demand(data: &mut Value, category: Category) {
    let (present, absent): (&[&str], &[&str]) = if category.is_call() {
        (&["call"], &["room", "participant", "invitation"])
    } else {
        (&["room", "participant", "invitation"], &["call"])
    };
    if let Some(Value::Array(required)) = data.get_mut("required") {
        required.extend(present.iter().map(|name| Value::from(*name)));
    }
    let absent: Vec<Value> = absent.iter().map(|name| json!({ "required": [name] })).collect();
    data["not"] = json!({ "anyOf": absent });
    if let Value::Object(members) = data {
        members.remove("dependentRequired");
    }
    if category.is_invitation() {
        let description = "The invitation that it is about.";
        data["properties"]["invitation"] =
            json!({ "$ref": format!("{DEFINITIONS}Invitation"), "description": description });
    }
}

/// Removes the definitions that nothing refers to.
fn prune(schema: &mut Value) {
    let Some(Value::Object(mut unused)) = schema.get_mut("$defs").map(Value::take) else { return };
    let mut used = Map::new();
    let mut text = schema.to_string();
    loop {
        let next = unused.keys().find(|name| text.contains(&format!("\"{DEFINITIONS}{name}\""))).cloned();
        let Some((name, definition)) = next.and_then(|name| unused.remove_entry(&name)) else { break };
        text = definition.to_string() + &text;
        used.insert(name, definition);
    }
    schema["$defs"] = Value::Object(used);
}

/// Makes every reference to a definition one to a component.
fn point_to(schema: &mut Value, prefix: &str) {
    match schema {
        Value::Object(members) => {
            if let Some(Value::String(reference)) = members.get_mut("$ref")
                && let Some(name) = reference.strip_prefix(DEFINITIONS)
            {
                *reference = format!("{prefix}{name}");
            }
            members.values_mut().for_each(|member| point_to(member, prefix));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| point_to(item, prefix)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "urn:sendbird-bridge:schema:";

    fn required(schema: &Value) -> Vec<&str> {
        schema["required"].as_array().expect("a list").iter().map(|name| name.as_str().expect("a name")).collect()
    }

    #[test]
    fn the_envelope_says_what_is_always_there() {
        let schema = SchemaDocument::Envelope.document(BASE);
        let attributes = [
            "specversion",
            "id",
            "source",
            "type",
            "time",
            "datacontenttype",
            "dataschema",
            "partitionkey",
            "receivedtime",
            "data",
        ];
        assert_eq!(required(&schema), attributes);
        for (attribute, kind) in
            [("subject", "string"), ("traceparent", "string"), ("replayed", "boolean"), ("reconciled", "boolean")]
        {
            assert_eq!(schema["properties"][attribute]["type"], kind, "{attribute} is absent, never null");
        }
        assert_eq!(required(&schema["$defs"]["Data"]), ["category", "application_id", "occurred_at_ms", "raw"]);
        assert_eq!(required(&schema["$defs"]["Call"]).len(), 10);
        assert_eq!(required(&schema["$defs"]["Room"]).len(), 8);
        assert_eq!(required(&schema["$defs"]["Participant"]).len(), 10);
        assert_eq!(required(&schema["$defs"]["Invitation"]), ["inviter_id", "invitee_id"]);
    }

    #[test]
    fn each_known_type_has_what_it_is_about_and_nothing_else() {
        let dial = SchemaDocument::Type(Category::DirectCallDial).document(BASE);
        assert_eq!(dial["properties"]["type"]["const"], "com.sendbird.calls.direct_call.dial");
        assert_eq!(
            dial["$defs"].as_object().expect("definitions").keys().collect::<Vec<_>>(),
            ["Call", "DirectCallData", "Items"]
        );
        assert!(required(&dial["$defs"]["DirectCallData"]).contains(&"call"));
        let sent = SchemaDocument::Type(Category::RoomInvitationSend).document(BASE);
        assert_eq!(sent["$defs"]["InvitationData"]["properties"]["invitation"]["$ref"], "#/$defs/Invitation");
        let exit = SchemaDocument::Type(Category::RoomParticipantExit).document(BASE);
        assert!(
            exit["$defs"]["RoomData"]["properties"]["invitation"]["anyOf"].is_array(),
            "null unless it is about one"
        );
        assert!(exit["$defs"]["RoomData"]["properties"].get("call").is_none());
    }

    #[test]
    fn names_are_what_dataschema_says() {
        let names: Vec<String> = SchemaDocument::all().map(SchemaDocument::name).collect();
        assert_eq!(names.len(), 17);
        assert_eq!(names[..4], ["envelope:v1", "direct_call:v1", "room:v1", "other:v1"]);
        let schema = SchemaDocument::Data("room").document("https://example.com/schemas/");
        assert_eq!(schema["$id"], "https://example.com/schemas/room:v1");
        let of_type = SchemaDocument::Type(Category::RoomCreate).document(BASE);
        assert_eq!(of_type["properties"]["dataschema"]["examples"], json!(["urn:sendbird-bridge:schema:room:v1"]));
    }

    /// A schema that closed an open set, or forbade what may come, would break consumers that validate.
    #[test]
    fn open_sets_are_open() {
        for schema in SchemaDocument::all().map(|published| published.document(BASE).to_string()) {
            for word in ["\"enum\"", "\"additionalProperties\":false", "\"unevaluatedProperties\""] {
                assert!(!schema.contains(word), "{word} in {schema}");
            }
        }
    }

    #[test]
    fn as_components_they_refer_to_each_other_where_they_are() {
        let mut components = Map::new();
        SchemaDocument::all().for_each(|published| published.add_to(&mut components, "#/components/schemas/"));
        for name in [
            "envelope",
            "com.sendbird.calls.room.create",
            "DirectCallData",
            "RoomData",
            "InvitationData",
            "Data",
            "Items",
        ] {
            assert!(components.contains_key(name), "{name}");
        }
        let text = Value::Object(components.clone()).to_string();
        assert!(!text.contains("$defs") && !text.contains("$schema"));
        for reference in text.split("\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().expect("a name");
            assert!(components.contains_key(name), "{name}");
        }
    }
}
