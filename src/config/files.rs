//! Files that settings name: certificates and keys.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

use super::words::shell_word;

/// The contents of the file at `path`, if they are at most `bytes_max` bytes. The error is a rule.
pub(crate) fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let look = format!("its owner and mode: ls -ld {}", shell_word(path));
    // Not to wait for a writer: a pipe would stop whoever reads it.
    let open =
        OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path);
    let file = open.map_err(|e| match e.kind() {
        ErrorKind::NotFound => format!("cannot be opened: {e}; name a file that is there"),
        _ => format!("cannot be opened: {e}; {look}"),
    })?;
    let kind = file.metadata().map_err(|e| format!("cannot be read: {e}; {look}"))?.file_type();
    if !kind.is_file() && !kind.is_dir() {
        return Err("is no regular file; name one".into());
    }
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
