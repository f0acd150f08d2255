//! Files that settings name: certificates and keys.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use super::words::shell_word;

/// The contents of the file at `path`, if they are at most `bytes_max` bytes. The error is a rule.
pub(crate) fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let look = format!("its owner and mode: ls -ld {}", shell_word(path));
    let file = File::open(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => format!("cannot be opened: {e}; name a file that is there"),
        _ => format!("cannot be opened: {e}; {look}"),
    })?;
    let read = file.take(bytes_max + 1).read_to_end(&mut bytes);
    read.map_err(|e| match e.kind() {
        ErrorKind::IsADirectory => format!("cannot be read: {e}; name a file in it"),
        _ => format!("cannot be read: {e}; {look}"),
    })?;
    if bytes.len() as u64 > bytes_max {
        return Err(format!("is larger than {bytes_max} bytes; is it the right file?"));
    }
    Ok(bytes)
}
