//! No image of this process' memory, which holds secrets and what users wrote, is ever put on a disk.

use rustix::process::{Resource, Rlimit, setrlimit};

/// Forbids core dumps. The limit alone does not do it: the kernel ignores it where dumps are piped to a program, as
/// systemd and Kubernetes' nodes have it. What may not be dumped may not be traced by others of the same user either,
/// and its files in `/proc` belong to root; the process goes on reading its own.
///
/// # Errors
/// The kernel refused it.
pub(super) fn forbid() -> std::io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}
