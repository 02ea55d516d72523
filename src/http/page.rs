//! The operations page: its files, which are in the program, and the headers that keep a browser from doing more than the
//! page needs.
//!
//! The document is at `/`; what it refers to is at `/page/VERSION/NAME`, where VERSION is made of the contents of all of
//! them, so that a browser may keep them for ever and never mixes two versions. Nothing is fetched from elsewhere. The data
//! comes from the JSON of the admin endpoint, as for every other program.

mod runbook;

use std::collections::BTreeMap;

use bytes::Bytes;
use ring::digest::{Context, SHA256};
use warp::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderName, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use warp::http::{HeaderMap, StatusCode};
use warp::reply::Response;

use super::reply::respond;

/// Where the files are; the version and a name follow.
const FOLDER: &str = "/page/";

/// What the document has in the place of the version.
const PLACEHOLDER: &str = "VERSION";

/// The content type of the page.
pub(super) const HTML: &str = "text/html; charset=utf-8";

const SCRIPT: &str = "text/javascript; charset=utf-8";

const DOCUMENT: &str = include_str!("page/index.html");

/// Each file by name, with its content type.
const FILES: [(&str, &str, &str); 10] = [
    ("api.js", SCRIPT, include_str!("page/api.js")),
    ("app.js", SCRIPT, include_str!("page/app.js")),
    ("chart.js", SCRIPT, include_str!("page/chart.js")),
    ("dom.js", SCRIPT, include_str!("page/dom.js")),
    ("envelope.js", SCRIPT, include_str!("page/envelope.js")),
    ("format.js", SCRIPT, include_str!("page/format.js")),
    ("icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
    ("live.js", SCRIPT, include_str!("page/live.js")),
    ("now.js", SCRIPT, include_str!("page/now.js")),
    ("style.css", "text/css; charset=utf-8", include_str!("page/style.css")),
];

/// The runbook's name among the files. It is made from `docs/runbook.md`.
const RUNBOOK: &str = "runbook.html";

/// What a browser may do with anything that the admin endpoint answers: run and load what comes from the same origin, and
/// nothing that stands in the document itself.
const HEADERS: [(HeaderName, &str); 3] = [
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
         frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    ),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (REFERRER_POLICY, "no-referrer"),
];

/// The files of the page, ready to be served.
pub struct PageFiles {
    document: Bytes,
    files: BTreeMap<String, (&'static str, Bytes)>,
}

impl PageFiles {
    /// Those of this program.
    pub fn new() -> Self {
        let runbook = runbook::html();
        let files = FILES.into_iter().map(|(name, kind, text)| (name, kind, Bytes::from_static(text.as_bytes())));
        let files: Vec<_> = files.chain([(RUNBOOK, HTML, Bytes::from(runbook))]).collect();
        let mut digest = Context::new(&SHA256);
        for (name, _, body) in &files {
            digest.update(name.as_bytes());
            digest.update(&body.len().to_be_bytes());
            digest.update(body);
        }
        let version = hex::encode(&digest.finish().as_ref()[..8]);
        let files = files.into_iter().map(|(name, kind, body)| (format!("{FOLDER}{version}/{name}"), (kind, body)));
        Self { document: DOCUMENT.replace(PLACEHOLDER, &version).into(), files: files.collect() }
    }

    /// The answer at this path, if it is one of the page's.
    pub(super) fn get(&self, path: &str) -> Option<Response> {
        if path == "/" {
            return Some(respond(StatusCode::OK, HTML, self.document.to_vec()));
        }
        let (kind, body) = self.files.get(path)?;
        let mut response = Response::new(body.clone().into());
        let headers = response.headers_mut();
        headers.insert(warp::http::header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable"));
        Some(response)
    }
}

impl Default for PageFiles {
    fn default() -> Self {
        Self::new()
    }
}

/// Adds what a browser has to heed to an answer of the admin endpoint. What says nothing of how long it may be kept is data.
pub(super) fn protect(headers: &mut HeaderMap) {
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_refers_to_files_that_are_there() {
        let page = PageFiles::new();
        let document = std::str::from_utf8(&page.document).unwrap();
        let named: Vec<&str> = document.split(['"']).filter(|part| part.starts_with("page/")).collect();
        assert!(named.len() > 5, "{named:?}");
        for path in named {
            assert!(page.get(&format!("/{path}")).is_some(), "{path}");
        }
        assert!(page.get("/page/").is_none() && page.get("/index.html").is_none());
    }

    #[test]
    fn modules_import_files_that_are_there() {
        for (name, _, text) in FILES {
            for imported in text.split(" from \"./").skip(1).filter_map(|rest| rest.split('"').next()) {
                assert!(FILES.iter().any(|(name, ..)| *name == imported), "{name} imports {imported}");
            }
        }
    }

    /// All that a browser loads for the page; the runbook is loaded by who opens it.
    #[test]
    fn the_page_is_less_than_100_kib() {
        let size: usize = DOCUMENT.len() + FILES.iter().map(|(_, _, text)| text.len()).sum::<usize>();
        assert!(size < 100 * 1024, "{size} bytes");
    }

    /// What would make markup of a value. All of it goes through `dom.js`, which makes text.
    #[test]
    fn no_script_makes_markup_of_values() {
        let ways = [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "DOMParser",
            "createContextualFragment",
            "srcdoc",
            "eval(",
            "new Function",
        ];
        for (name, _, text) in FILES {
            for way in ways {
                assert!(!text.contains(way), "{name} has {way}");
            }
        }
        assert!(!DOCUMENT.contains("style=") && !DOCUMENT.contains(" on"), "inline style or handlers");
    }
}
