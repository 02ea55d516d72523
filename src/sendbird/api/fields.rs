//! The members of an answer's objects, read as tolerantly as those of a delivery: what is absent, `null`, empty or of an
//! unexpected type is not known.

use serde_json::Value;

/// An object of an answer, or nothing.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a Value);

impl<'a> Fields<'a> {
    /// Those of an object; `None` of anything else.
    pub(super) fn of(value: &'a Value) -> Option<Self> {
        value.is_object().then_some(Self(value))
    }

    /// A text that is not empty.
    pub(super) fn text(self, name: &str) -> Option<String> {
        self.0.get(name)?.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
    }

    /// A whole number, however it is written.
    pub(super) fn integer(self, name: &str) -> Option<i64> {
        match self.0.get(name)? {
            Value::Number(number) => {
                let float = || number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < 9e15);
                number.as_i64().or_else(|| float().map(|float| float as i64))
            }
            Value::String(digits) => digits.parse().ok(),
            _ => None,
        }
    }

    /// A boolean, or the text of one: Sendbird's pages call `is_video_call` a string.
    pub(super) fn boolean(self, name: &str) -> Option<bool> {
        match self.0.get(name)? {
            Value::Bool(value) => Some(*value),
            Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
            Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
            _ => None,
        }
    }

    /// The id of a user who is given as an object or as a text.
    pub(super) fn user(self, name: &str) -> Option<String> {
        self.text(name).or_else(|| Fields(self.0.get(name)?).text("user_id"))
    }

    /// A list of texts; what is no text in it is left out. An empty list is one.
    pub(super) fn texts(self, name: &str) -> Option<Vec<String>> {
        let items = self.0.get(name)?.as_array()?;
        Some(items.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    }

    /// A list of objects; anything else is an empty one.
    pub(super) fn objects(self, name: &str) -> impl Iterator<Item = &'a Value> {
        let items = self.0.get(name).and_then(Value::as_array);
        items.into_iter().flatten().filter(|item| item.is_object())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_understood_is_not_known() {
        let odd = json!({
            "none": null, "empty": "", "list": [], "object": {}, "number": 1.5, "huge": 1e300, "word": "x",
        });
        for name in ["none", "empty", "list", "object", "number", "huge", "word", "absent"] {
            let fields = Fields(&odd);
            assert_eq!(fields.integer(name), None, "{name}");
            assert_eq!(fields.boolean(name), None, "{name}");
            assert_eq!(fields.text(name).is_some(), name == "word", "{name}");
            assert_eq!(fields.user(name).is_some(), name == "word", "{name}");
            assert_eq!(fields.objects(name).count(), 0, "{name}");
        }
        assert_eq!(Fields(&json!("no object")).text("a"), None);
    }

    #[test]
    fn spellings_that_mean_the_same_are_read() {
        let found = json!({
            "a": 1767225733789_i64, "b": 1767225733789.0, "c": "1767225733789", "t": "true", "f": false,
            "u": { "user_id": "alice" }, "l": ["x", 1, ""], "o": [{}, 1],
        });
        let fields = Fields(&found);
        for name in ["a", "b", "c"] {
            assert_eq!(fields.integer(name), Some(1_767_225_733_789));
        }
        assert_eq!((fields.boolean("t"), fields.boolean("f")), (Some(true), Some(false)));
        assert_eq!(fields.user("u").as_deref(), Some("alice"));
        assert_eq!(fields.texts("l"), Some(vec!["x".to_owned(), String::new()]));
        assert_eq!(fields.objects("o").count(), 1);
    }
}
