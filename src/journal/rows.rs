//! Rows of the state file.

/// A row that can be read, or `None` for one whose values are not of their columns' types.
///
/// # Errors
/// The engine's.
pub(super) fn readable<T>(row: rusqlite::Result<T>) -> rusqlite::Result<Option<T>> {
    match row {
        Ok(row) => Ok(Some(row)),
        Err(error) if error.sqlite_error_code().is_none() => {
            tracing::error!(%error, "left out a damaged row of the state file");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The checksum of the parts of a row.
pub(super) fn crc(parts: &[&[u8]]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    for part in parts {
        crc.update(&(part.len() as u64).to_le_bytes());
        crc.update(part);
    }
    crc.finalize()
}
