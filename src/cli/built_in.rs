//! `shardgate gen config` and `shardgate gen proto`: files that are built into the program, written
//! into a directory.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use super::{EXIT_START, Output};
use crate::config::load::{DEFAULT_TOML, GATEWAY_TOML};
use crate::config::{program, shell_word};

/// A kind of built-in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuiltIn {
    /// The commented configuration.
    Config,
    /// The protocols of clients, services and the registry.
    Proto,
}

/// A file: its path below the directory, and its text.
type File = (&'static str, &'static str);

const CONFIG: [File; 2] = [("gateway.toml", GATEWAY_TOML), ("default.toml", DEFAULT_TOML)];

/// The .proto files under the paths by which programs import them.
const PROTO: [File; 4] = [
    (
        "shardgate/client/v1/client.proto",
        include_str!("../../proto/shardgate/client/v1/client.proto"),
    ),
    (
        "shardgate/backend/v1/backend.proto",
        include_str!("../../proto/shardgate/backend/v1/backend.proto"),
    ),
    ("shardgate/push/v1/push.proto", include_str!("../../proto/shardgate/push/v1/push.proto")),
    (
        "shardgate/registry/v1/registry.proto",
        include_str!("../../proto/shardgate/registry/v1/registry.proto"),
    ),
];

impl BuiltIn {
    fn files(self) -> &'static [File] {
        match self {
            Self::Config => &CONFIG,
            Self::Proto => &PROTO,
        }
    }

    /// What to do with the files in `dir`: a command.
    fn next(self, dir: &str) -> String {
        match self {
            Self::Config => format!("next: {} check --config {dir}", program()),
            Self::Proto => format!(
                "next, for a service in Python: mkdir -p pb && python3 -m grpc_tools.protoc \
                 -I{dir} --python_out=pb --grpc_python_out=pb shardgate/backend/v1/backend.proto \
                 shardgate/push/v1/push.proto"
            ),
        }
    }
}

/// Writes the files into `dir`, which is made if it is missing: all or none. A file that exists is
/// kept, and nothing is written then.
pub fn write(what: BuiltIn, dir: &Path) -> Output {
    let exists = |(name, _): &&File| dir.join(name).symlink_metadata().is_ok();
    if let Some((name, _)) = what.files().iter().find(exists) {
        return Output::wrong(refusal(&dir.join(name)), EXIT_START);
    }
    let mut text = String::new();
    for (n, (name, content)) in what.files().iter().enumerate() {
        let path = dir.join(name);
        if let Err(why) = write_new(&path, content) {
            // They would be in the way of another attempt.
            for (written, _) in &what.files()[..n] {
                let _ = fs::remove_file(dir.join(written));
            }
            return Output::wrong(why, EXIT_START);
        }
        text += &format!("wrote {}\n", path.display());
    }
    Output::fine(text + &what.next(&shell_word(dir)))
}

fn refusal(path: &Path) -> String {
    let word = shell_word(path);
    let path = path.display();
    format!(
        "{path} exists and is not overwritten; keep it under another name: mv {word} {word}.old"
    )
}

/// Writes a new file, and makes the directories that it is in. The error is one line.
fn write_new(path: &Path, text: &str) -> Result<(), String> {
    let failed = |error: io::Error| format!("{}: {error}; name another directory", path.display());
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    let mut file = file.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => refusal(path),
        _ => failed(error),
    })?;
    file.write_all(text.as_bytes()).map_err(|error| {
        let _ = fs::remove_file(path);
        failed(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_once_and_never_over_others() {
        let parent = tempfile::tempdir().expect("a directory");
        let dir = parent.path().join("my files");
        for (what, count) in [(BuiltIn::Config, 2), (BuiltIn::Proto, 4)] {
            let Output { text, code, .. } = write(what, &dir);
            assert_eq!(code, 0, "{text}");
            assert_eq!(text.lines().filter(|line| line.starts_with("wrote ")).count(), count);
            assert!(text.lines().last().is_some_and(|line| line.contains("my files'")), "{text}");
            for (name, content) in what.files() {
                assert_eq!(fs::read_to_string(dir.join(name)).expect("written"), *content);
            }
        }
        fs::remove_file(dir.join("gateway.toml")).expect("written");
        fs::write(dir.join("default.toml"), "mine").expect("our directory");
        let Output { text, code, .. } = write(BuiltIn::Config, &dir);
        assert_eq!((code, text.lines().count()), (EXIT_START, 1), "{text}");
        assert!(text.contains("default.toml exists and is not overwritten"), "{text}");
        assert!(!dir.join("gateway.toml").exists(), "nothing is written if one file exists");
        assert_eq!(fs::read_to_string(dir.join("default.toml")).expect("kept"), "mine");
    }

    #[test]
    fn nothing_stays_of_files_that_cannot_all_be_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |path: &str| dir.path().join(path);
        fs::create_dir(at("shardgate")).expect("our directory");
        fs::write(at("shardgate/backend"), "a file in the way").expect("our directory");
        let Output { text, code, .. } = write(BuiltIn::Proto, dir.path());
        assert_eq!((code, text.lines().count()), (EXIT_START, 1), "{text}");
        assert!(!at("shardgate/client/v1/client.proto").exists(), "{text}");
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_told_in_one_line() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        for what in [BuiltIn::Proto, BuiltIn::Config] {
            let Output { text, code, .. } = write(what, file.path());
            assert_eq!((code, text.lines().count()), (EXIT_START, 1), "{text}");
            assert!(text.contains("name another directory"), "{text}");
        }
    }
}
