//! Programs of Debian packages, unpacked where they are missing.

use std::path::PathBuf;
use std::process::Command;

use super::repository::repository;

/// The path of a package's program, which says its version by this option.
///
/// # Panics
/// The package cannot be had, or its program does not run here.
pub(crate) fn program(package: &str, program: &str, version_option: &str) -> PathBuf {
    let output = Command::new(repository("tests/tools/debian-program"))
        .args([package, program, version_option])
        .output()
        .unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    PathBuf::from(said.lines().last().expect("a path"))
}
