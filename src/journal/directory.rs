//! The journal's directory: one process has it, its entries are durable, its disk has so much room.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use super::OpenError;

/// Takes the directory for this process; the lock goes when the file is closed, also by `kill -9`.
pub(super) fn lock(dir: &Path) -> Result<File, OpenError> {
    // What users wrote is in it. One that exists is left as its owner wants it.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(OpenError::directory(dir))?;
    if let Some(parent) = dir.canonicalize().map_err(OpenError::directory(dir))?.parent() {
        sync(parent).map_err(OpenError::directory(parent))?;
    }
    let path = dir.join("lock");
    let file =
        File::options().create(true).truncate(false).write(true).open(&path).map_err(OpenError::directory(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { dir: dir.to_owned() }),
        Err(TryLockError::Error(error)) => Err(OpenError::directory(&path)(error)),
    }
}

/// Whose a file is, and who this process is, where that is why it cannot be used: a volume that another user has made.
pub(super) fn owners(path: &Path, error: &io::Error) -> String {
    let existing = path.ancestors().find_map(|path| fs::metadata(path).ok());
    let (Some(found), true) = (existing, error.kind() == io::ErrorKind::PermissionDenied) else { return String::new() };
    let (owner, process) = (found.uid(), rustix::process::geteuid().as_raw());
    if owner == process { String::new() } else { format!("; it belongs to uid {owner}, this process is uid {process}") }
}

/// Makes the directory's entries durable, which fsyncing the files alone does not.
pub(super) fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Free bytes on the directory's disk; 0 when that can't be seen.
pub(super) fn free(dir: &Path) -> u64 {
    match rustix::fs::statvfs(dir) {
        Ok(stats) => stats.f_bavail.saturating_mul(stats.f_frsize),
        Err(error) => {
            tracing::debug!(%error, "cannot read the free space of the journal's disk");
            0
        }
    }
}

/// Opens a file; `None` where it is missing, or the disk cannot open it. Who may not open it, or has too many open,
/// gets an error: that is no damage.
pub(super) fn open_readable(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound || is_damage(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the disk says that it has lost what it was given.
pub(super) fn is_damage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let lost = [Errno::IO, Errno::NXIO, Errno::BADMSG, Errno::UCLEAN, Errno::NODATA, Errno::REMOTEIO, Errno::ILSEQ];
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData)
        || error.raw_os_error().is_some_and(|code| lost.iter().any(|errno| errno.raw_os_error() == code))
}
