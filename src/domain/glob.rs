//! Patterns over categories, as in a sink's `categories = ["room:*"]`.

/// Whether `text` matches `pattern`, in which `*` stands for any characters, also none. Letters match
/// whatever their case, as Sendbird's enumerations do.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        if p < pattern.len() && pattern[p] == b'*' {
            retry = Some((p + 1, t));
            p += 1;
        } else if p < pattern.len() && pattern[p].eq_ignore_ascii_case(&text[t]) {
            p += 1;
            t += 1;
        } else if let Some((after_star, from)) = retry {
            retry = Some((after_star, from + 1));
            p = after_star;
            t = from + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("*", "room:create", true),
            ("room:*", "room:create", true),
            ("room:*", "direct_call:dial", false),
            ("*:participant_*", "room:participant_exit", true),
            ("room:invitation_*t", "room:invitation_accept", true),
            ("room:invitation_*t", "room:invitation_send", false),
            ("ROOM:create", "room:Create", true),
            ("room:create", "room:create2", false),
            ("", "x", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} over {text}");
        }
    }
}
