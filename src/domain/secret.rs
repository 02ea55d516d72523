//! Configured secrets, which must never be printed.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// What stands in place of a secret wherever one could be shown.
pub const HIDDEN: &str = "<hidden>";

/// A text that neither `Debug`, `Display` nor `Serialize` reveals.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one use that it is there for.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `given` is the secret, in a time that doesn't depend on where they differ.
    pub fn equals(&self, given: &[u8]) -> bool {
        use subtle::ConstantTimeEq;
        self.0.as_bytes().ct_eq(given).into()
    }
}

/// A secret that may be replaced while it is in use. Comparing with it never blocks.
#[derive(Clone, Debug)]
pub struct RotatableSecret(Arc<ArcSwap<Secret>>);

impl RotatableSecret {
    /// Holds a secret until another replaces it.
    pub fn new(secret: Secret) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(secret)))
    }

    /// From now on every clone holds this one.
    pub fn replace(&self, secret: Secret) {
        self.0.store(Arc::new(secret));
    }

    /// As [`Secret::equals`].
    pub fn equals(&self, given: &[u8]) -> bool {
        self.0.load().equals(given)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(HIDDEN)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Secret;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a secret as text in quotes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Secret, E> {
                if text.is_empty() {
                    return Err(E::custom("expected a secret, but it is empty"));
                }
                Ok(Secret(text.to_owned()))
            }

            // Whatever else was given is not echoed: serde's own message would print the value.
            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Secret, E> {
                Err(E::custom("expected a secret as text in quotes, but found a number"))
            }

            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Secret, E> {
                self.visit_i64(0)
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Secret, E> {
                self.visit_i64(0)
            }

            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Secret, E> {
                Err(E::custom("expected a secret as text in quotes, but found a boolean"))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

impl schemars::JsonSchema for Secret {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "minLength": 1, "writeOnly": true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_never_shown() {
        let secret = Secret::new("canary");
        for shown in [format!("{secret:?}"), format!("{secret}"), serde_json::to_string(&secret).unwrap_or_default()] {
            assert!(!shown.contains("canary") && shown.contains(HIDDEN), "{shown}");
        }
    }

    #[test]
    fn errors_do_not_echo_it() {
        for wrong in ["4711", "true", "47.11", "\"\"", "[4711]", "{\"4711\": 1}"] {
            let error = serde_json::from_str::<Secret>(wrong).expect_err("refused").to_string();
            assert!(!error.contains("4711") && !error.contains("47.11"), "{error}");
        }
    }

    #[test]
    fn compares_whole_texts() {
        let secret = Secret::new("abc");
        assert!(secret.equals(b"abc"));
        assert!(!secret.equals(b"abd") && !secret.equals(b"ab") && !secret.equals(b"abcd"));
    }
}
