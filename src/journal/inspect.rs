//! A look at where a journal is, or is to be: whether it can be written, and whether what is below it does for a journal.
//!
//! Nothing is made or locked, so a bridge that runs, or starts meanwhile, notices nothing.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::directory::owners;
use super::{DISK_RESERVE, Settings};
use crate::domain::units::Size;

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// Why no journal can be opened there.
    pub fault: Option<String>,
    /// What may lose events, or refuse them.
    pub warnings: Vec<String>,
    /// A bridge is running with it.
    pub in_use: bool,
}

/// Looks at `journal.dir`, or, where it does not exist yet, at the directory that it would be made in.
pub fn inspect(settings: &Settings) -> Inspection {
    let dir = &settings.dir;
    let Some(existing) = existing(dir) else {
        return Inspection { fault: Some(format!("{} does not exist", dir.display())), ..Inspection::default() };
    };
    let in_use = is_locked(&dir.join("lock"));
    let fault = if in_use { None } else { try_to_write(dir, &existing).err() };
    if fault.is_some() {
        return Inspection { fault, ..Inspection::default() };
    }
    let mut warnings: Vec<_> = unsuited(&existing).map(str::to_owned).into_iter().collect();
    if let Ok(disk) = rustix::fs::statvfs(&existing) {
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        let (free, all) = (bytes(disk.f_bavail), bytes(disk.f_blocks));
        if free < DISK_RESERVE {
            warnings.push(format!("the disk has {} free; below {} no event is stored", Size(free), Size(DISK_RESERVE)));
        } else if all < settings.max_bytes.0 {
            let max = settings.max_bytes;
            warnings.push(format!("the disk holds {} in all, less than journal.max_bytes ({max})", Size(all)));
        }
    }
    Inspection { fault, warnings, in_use }
}

/// The directory itself, or the nearest above it that exists.
fn existing(dir: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(dir).ok()?;
    absolute.ancestors().find(|path| path.exists()).map(Path::to_owned)
}

fn try_to_write(dir: &Path, existing: &Path) -> Result<(), String> {
    let cannot = |path: &Path, what: &str, error: &io::Error| {
        let text = error.to_string().to_lowercase();
        let reason = text.split(" (os error").next().unwrap_or(&text);
        format!("{} cannot be {what}: {reason}{}", path.display(), owners(path, error))
    };
    if !existing.is_dir() {
        return Err(format!("{} is not a directory", existing.display()));
    }
    if dir.exists() {
        let lock = dir.join("lock");
        if lock.exists() {
            std::fs::File::options().write(true).open(&lock).map_err(|error| cannot(&lock, "written", &error))?;
        }
        return tempfile::tempfile_in(dir).map(drop).map_err(|error| cannot(dir, "written", &error));
    }
    // Gone again at once.
    tempfile::tempdir_in(existing).map(drop).map_err(|error| cannot(dir, "created", &error))
}

/// Whether a process holds the lock, as the kernel tells; asking for the lock could make a bridge that starts fail.
pub(super) fn is_locked(lock: &Path) -> bool {
    let (Ok(file), Ok(locks)) = (std::fs::metadata(lock), std::fs::read_to_string("/proc/locks")) else { return false };
    let inode = format!(":{}", file.ino());
    let is_ours = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.get(1) == Some(&"FLOCK") && words.get(5).is_some_and(|place| place.ends_with(&inode))
    };
    locks.lines().any(is_ours)
}

/// What is wrong with the file system below a journal.
#[cfg(target_os = "linux")]
fn unsuited(dir: &Path) -> Option<&'static str> {
    const NETWORK: &str = "it is on a network file system, where fsync, locks and shared memory cannot be relied on; use a \
                           local disk or a block volume";
    const OVERLAY: &str = "it is on an overlay file system, the container's own layer, which is deleted with the container; \
                           mount a volume";
    const MEMORY: &str = "it is in memory (tmpfs); a restart of the machine loses what was stored";
    // From linux/magic.h, and of SMB from fs/smb.
    #[allow(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "these numbers have 32 bits")]
    let magic = rustix::fs::statfs(dir).ok()?.f_type as u32;
    match magic {
        0x6969 | 0x517b | 0xff53_4d42 | 0xfe53_4d42 | 0x0102_1997 | 0x0187_2436 | 0x00c3_6400 => Some(NETWORK),
        0x794c_7630 => Some(OVERLAY),
        0x0102_1994 | 0x8584_58f6 => Some(MEMORY),
        _ => None,
    }
}

#[cfg(not(target_os = "linux"))]
fn unsuited(_: &Path) -> Option<&'static str> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::directory;

    fn at(dir: &Path) -> Inspection {
        inspect(&Settings { dir: dir.to_owned(), ..Settings::default() })
    }

    #[test]
    fn a_directory_is_looked_at_and_left_as_it_was() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("a/b");
        let found = at(&dir);
        assert!(found.fault.is_none() && !found.in_use, "{found:?}");
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "nothing is made");
        let lock = directory::lock(&dir).unwrap();
        let found = at(&dir);
        assert!(found.fault.is_none() && found.in_use, "{found:?}");
        drop(lock);
        assert!(!at(&dir).in_use);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "the lock file alone");
    }

    #[test]
    fn a_place_that_takes_no_journal_is_named() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(at(&file).fault, Some(format!("{} is not a directory", file.display())));
        assert_eq!(at(&file.join("journal")).fault, Some(format!("{} is not a directory", file.display())));
        let found = at(Path::new("/proc/no-journal"));
        assert!(
            found.fault.as_ref().is_some_and(|fault| fault.starts_with("/proc/no-journal cannot be created: ")),
            "{found:?}"
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_is_warned_of() {
        let Ok(home) = tempfile::tempdir_in("/dev/shm") else { return };
        assert!(at(home.path()).warnings.iter().any(|warning| warning.contains("tmpfs")));
    }
}
