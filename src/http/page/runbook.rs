//! The runbook as a page, made from `docs/runbook.md` at the start. Each heading is an anchor, as on the sites where people
//! read Markdown, so that an alert's name leads to its section.

use pulldown_cmark::{CowStr, Event, HeadingLevel, Options, Parser, Tag, TagEnd, html};

const MARKDOWN: &str = include_str!("../../../docs/runbook.md");

/// The whole document, for a place beside `style.css`.
pub(super) fn html() -> String {
    let mut body = String::new();
    html::push_html(&mut body, events(MARKDOWN).into_iter());
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>Runbook: sendbird-bridge</title>\n\
         <link rel=\"icon\" href=\"icon.svg\" type=\"image/svg+xml\">\n<link rel=\"stylesheet\" href=\"style.css\">\n\
         </head>\n<body>\n<header><p class=\"brand\"><img src=\"icon.svg\" alt=\"\" width=\"20\" height=\"20\"> \
         <a href=\"../../\">sendbird-bridge</a></p></header>\n<main class=\"document\">\n{body}</main>\n</body>\n</html>\n"
    )
}

/// The parts of the text, with anchors, and without links to documents that are not served.
fn events(text: &str) -> Vec<Event<'_>> {
    let mut events: Vec<Event<'_>> = Vec::new();
    let mut heading = None;
    let mut is_kept = false;
    let mut above: Vec<HeadingLevel> = Vec::new();
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Heading { level, id, classes, attrs }) => {
                heading = Some((events.len(), String::new()));
                // A screen reader takes a level that is left out for a section that is missing.
                above.retain(|other| *other < level);
                above.push(level);
                let level = HeadingLevel::try_from(above.len()).unwrap_or(level);
                events.push(Event::Start(Tag::Heading { level, id, classes, attrs }));
                continue;
            }
            Event::End(TagEnd::Heading(level)) => {
                if let Some((at, text)) = heading.take()
                    && let Some(Event::Start(Tag::Heading { id, .. })) = events.get_mut(at)
                {
                    *id = Some(CowStr::from(anchor(&text)));
                }
                events.push(Event::End(TagEnd::Heading(HeadingLevel::try_from(above.len()).unwrap_or(level))));
                continue;
            }
            Event::Text(ref part) | Event::Code(ref part) => {
                if let Some((_, text)) = &mut heading {
                    text.push_str(part);
                }
            }
            Event::Start(Tag::Link { ref dest_url, .. }) => {
                is_kept = dest_url.starts_with('#') || dest_url.starts_with("https://");
                if !is_kept {
                    continue;
                }
            }
            Event::End(TagEnd::Link) if !is_kept => continue,
            _ => {}
        }
        events.push(event);
    }
    events
}

/// The anchor of a heading: in lower case, without punctuation, with hyphens for spaces.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alert_leads_to_its_section_and_every_link_somewhere() {
        let html = html();
        let rules = include_str!("../../../deploy/prometheus/rules.yaml");
        let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
        assert!(alerts.len() > 15, "{alerts:?}");
        for alert in alerts {
            assert!(html.contains(&format!("<h2 id=\"{}\">{alert}</h2>", alert.to_lowercase())), "{alert}");
        }
        for target in html.split("href=\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(html.contains(&format!("id=\"{target}\"")), "{target}");
        }
        assert!(!html.contains(".md\""), "a document that is not served");
    }

    #[test]
    fn no_level_of_headings_is_left_out() {
        let levels = |text| {
            let mut html = String::new();
            html::push_html(&mut html, events(text).into_iter());
            html.split("<h").skip(1).filter_map(|rest| rest.chars().next()).collect::<String>()
        };
        assert_eq!(levels("# A\n### B\n### C\n## D\n### E\n"), "12223");
    }

    #[test]
    fn an_anchor_is_as_people_expect_it() {
        assert_eq!(anchor("What to tell the consumers"), "what-to-tell-the-consumers");
        assert_eq!(anchor("A `code`, too (yes)"), "a-code-too-yes");
    }
}
