//! What the program promises about its documents and its secrets: published schemas do not change, and no secret is shown
//! or written.

mod documents;
mod secrets;
