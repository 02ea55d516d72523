//! The kind of an event: its type, and the application that it is of.
//!
//! The journal counts and filters events by their kinds, without reading them. A kind is the type, U+001F, and the
//! application; the kinds of events that were stored by earlier versions, and patterns, may be a type alone.

use super::glob;

/// No type has it: control characters in a type are percent-encoded.
const SEPARATOR: char = '\u{1f}';

/// The kind of an event of this type and application, or a pattern that matches such kinds.
pub fn of(event_type: &str, application: Option<&str>) -> String {
    format!("{event_type}{SEPARATOR}{}", application.unwrap_or_default())
}

/// The type.
pub fn type_of(kind: &str) -> &str {
    kind.split_once(SEPARATOR).map_or(kind, |(event_type, _)| event_type)
}

/// Whether it names an application, or says that there is none.
pub fn names_application(kind: &str) -> bool {
    kind.contains(SEPARATOR)
}

/// Whether a pattern matches a kind.
pub fn matches(pattern: &str, kind: &str) -> bool {
    glob::matches(type_of(pattern), type_of(kind)) && matches_application(pattern, kind)
}

/// Whether it does as far as the application goes: also where one of the two says nothing of it.
pub fn matches_application(pattern: &str, kind: &str) -> bool {
    let application = |text| str::split_once(text, SEPARATOR).map(|(_, application)| application);
    application(pattern).zip(application(kind)).is_none_or(|(pattern, named)| glob::matches(pattern, named))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_applications_match_each_by_itself() {
        let kind = of("calls.room.create", Some("A-1"));
        for (pattern, expected) in [
            (of("calls.room.create", Some("a-1")), true),
            (of("calls.room.*", Some("A-1")), true),
            (of("*", Some("A-1")), true),
            (of("*", Some("A-12")), false),
            (of("calls.room.delete", Some("A-1")), false),
            (of("*", None), false),
            ("calls.room.create".to_owned(), true),
            ("*.create".to_owned(), true),
            ("calls.room.delete".to_owned(), false),
        ] {
            assert_eq!(matches(&pattern, &kind), expected, "{pattern:?}");
        }
        assert!(
            matches(&of("calls.*", Some("A-1")), "calls.room.create"),
            "of a type alone the application is not known"
        );
        assert!(!matches(&of("*", Some("A-1")), &of("calls.room.create", None)), "nor is it any where there is none");
        assert!(
            matches_application(&of("none", Some("A-1")), &kind) && !matches_application(&of("*", Some("B")), &kind)
        );
        assert_eq!((type_of(&kind), type_of("calls.room.create")), ("calls.room.create", "calls.room.create"));
        assert!(names_application(&kind) && names_application(&of("x", None)) && !names_application("x"));
    }
}
