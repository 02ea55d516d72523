//! What others on the same machine can look into: the journal's files, core dumps, the memory of the process.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use rustix::process::{Resource, getrlimit, getuid};

use crate::support::bridge::Config;
use crate::support::metrics::Metrics;
use crate::support::process::{Process, Stdout, limited, program};
use crate::support::verbose_bridge::VerboseBridge;

#[test]
fn a_journal_that_the_bridge_makes_is_for_its_user_alone() {
    let mode = |config: &Config| fs::metadata(config.dir().join("journal")).unwrap().mode() & 0o777;
    let made = Config::new();
    made.start();
    assert_eq!(mode(&made), 0o700);
    let found = Config::new();
    fs::create_dir(found.dir().join("journal")).unwrap();
    fs::set_permissions(found.dir().join("journal"), fs::Permissions::from_mode(0o750)).unwrap();
    found.start();
    assert_eq!(mode(&found), 0o750);
}

#[test]
fn a_crash_leaves_no_core() {
    let config = Config::new();
    let mut command = limited("ulimit -c $(ulimit -H -c)");
    command.current_dir(config.dir()).arg("--config").arg(config.write()).arg("serve");
    let bridge = VerboseBridge::started(Process::start(command, Stdout::Read), config.clone());
    let limits = fs::read_to_string(bridge.process.proc("limits")).unwrap();
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).expect("a limit");
    assert_eq!(core.split_whitespace().take(2).collect::<Vec<_>>(), ["0", "0"], "{limits}");
    let ended = bridge.process.abort();
    assert_eq!((ended.status.signal(), ended.status.core_dumped()), (Some(6), false));
}

/// What may not be dumped has files in `/proc` that belong to root. It must be able to read its own all the same.
#[cfg(target_os = "linux")]
#[test]
fn a_bridge_that_others_cannot_look_into_still_measures_itself() {
    let config = Config::new();
    fs::set_permissions(config.dir(), fs::Permissions::from_mode(0o777)).unwrap();
    let file = config.write();
    // Through a descriptor, because the user may not come to where the program lies.
    let user = if getuid().is_root() { "setpriv --reuid=65532 --regid=65532 --clear-groups" } else { "" };
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec {user} /proc/self/fd/3 \"$@\" 3<\"$0\"")]).arg(program().get_program());
    command.arg("--config").arg(file).args(["serve"]);
    let bridge = VerboseBridge::started(Process::start(command, Stdout::Read), config);
    let owner = fs::metadata(bridge.process.proc("environ")).unwrap().uid();
    assert_eq!(owner, 0, "others of its user can read its memory");
    let metrics = Metrics::parse(bridge.ask("/metrics", "").text());
    for name in ["process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds"] {
        assert!(metrics.value(name, &[]) > 0.0, "{name}");
    }
    assert_eq!(metrics.value("process_max_fds", &[]), getrlimit(Resource::Nofile).maximum.unwrap_or(0) as f64);
}
