//! Files that settings name: certificates and keys.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The contents of the file at `path`, if they are at most `bytes_max` bytes. The error is a rule.
pub(crate) fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| format!("cannot be opened: {e}"))?;
    let read = file.take(bytes_max + 1).read_to_end(&mut bytes);
    read.map_err(|e| format!("cannot be read: {e}"))?;
    if bytes.len() as u64 > bytes_max {
        return Err(format!("is larger than {bytes_max} bytes"));
    }
    Ok(bytes)
}
