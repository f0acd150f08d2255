//! Token of the admin endpoint: from the configuration, from a file, or made at the start. The
//! gateway and the verbs that call it find it by the same rules.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use subtle::ConstantTimeEq;

use crate::config::settings::AdminSettings;
use crate::config::{STATIC_TOKEN_BYTES_MAX, is_token};

/// Random bytes of a token that is made at the start.
const RANDOM_BYTES: usize = 32;

/// A token, which is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Text for the header `Authorization: Bearer`.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `shown` is the token. Takes as long for every `shown` of a possible length.
    pub fn is(&self, shown: &[u8]) -> bool {
        let padded = |bytes: &[u8]| {
            let mut padded = [0; STATIC_TOKEN_BYTES_MAX];
            let room = padded.get_mut(..bytes.len())?;
            room.copy_from_slice(bytes);
            Some(padded)
        };
        match (padded(self.0.as_bytes()), padded(shown)) {
            (Some(own), Some(padded)) => {
                let length = self.0.len().ct_eq(&shown.len());
                (own.ct_eq(&padded) & length).into()
            }
            (None, _) | (_, None) => false,
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(<redacted>)")
    }
}

/// Runtime directory of the unit that `gen systemd` makes. A shell has no `$RUNTIME_DIRECTORY`, so
/// the verbs look there when the user's own directory has no token.
const SERVICE_HOME: &str = "/run/shardgate";

/// File of a token that this process made up for itself. Nobody can use it after the process has
/// ended, so dropping this removes it.
#[derive(Debug)]
pub struct MadeFile {
    path: PathBuf,
    token: Token,
}

impl Drop for MadeFile {
    fn drop(&mut self) {
        // The next gateway on this port may have put its own there already.
        if read(&self.path).is_ok_and(|token| token == self.token) {
            // A file that stays is replaced by the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Token of the server that listens on `port`: made and written to its file if none is configured.
/// With neither token nor file configured, the file is the process's own, and comes with it. The
/// error is one line, without anything of the token.
pub fn for_server(
    settings: &AdminSettings,
    port: u16,
) -> Result<(Token, Option<MadeFile>), String> {
    match configured(settings) {
        Some(Ok(path)) if fs::symlink_metadata(path).is_err() => {
            let token = random();
            write_new(path, &token).map_err(|e| at(path, format!("cannot make it: {e}")))?;
            Ok((token, None))
        }
        Some(Ok(path)) => Ok((read(path)?, None)),
        Some(Err(token)) => Ok((token, None)),
        None => {
            let home = TokenDir::of(|name| std::env::var_os(name));
            home.make()?;
            let path = home.file(port);
            let token = replace(&path)?;
            Ok((token.clone(), Some(MadeFile { path, token })))
        }
    }
}

/// Token of the server on this host that listens on `port`, as its user (or root) can read it.
pub fn for_client(settings: &AdminSettings, port: u16) -> Result<Token, String> {
    match configured(settings) {
        Some(Ok(path)) => read(path),
        Some(Err(token)) => Ok(token),
        None => {
            let home = TokenDir::of(|name| std::env::var_os(name));
            let own = home.check().and_then(|()| read(&home.file(port)));
            let service = Path::new(SERVICE_HOME).join(file_name(port));
            match own {
                Err(_) if fs::symlink_metadata(&service).is_ok() => read(&service),
                own => own,
            }
        }
    }
}

/// Token of the settings: a file, or the token itself.
fn configured(settings: &AdminSettings) -> Option<Result<&Path, Token>> {
    match (&settings.token, &settings.token_file) {
        (Some(token), _) => Some(Err(Token(token.expose().to_owned()))),
        (None, Some(path)) => Some(Ok(path)),
        (None, None) => None,
    }
}

/// The reason why the configured file, which is there, cannot be used: one line. Of the file of
/// another user nothing can be said: the gateway may run as that user.
pub fn unusable(settings: &AdminSettings) -> Option<String> {
    let is_known = |path: &Path| {
        fs::metadata(path).is_ok_and(|found| !found.is_file() || found.uid() == own_uid())
    };
    match configured(settings)? {
        Ok(path) if is_known(path) => read(path).err(),
        Ok(_) | Err(_) => None,
    }
}

fn file_name(port: u16) -> String {
    format!("admin-{port}.token")
}

fn random() -> Token {
    let bytes: [u8; RANDOM_BYTES] = rand::random();
    Token(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn at(path: &Path, what: impl fmt::Display) -> String {
    format!("admin token in {}: {what}", path.display())
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Whether the file belongs to the gateway's user or to root.
fn is_ours(found: &Metadata) -> bool {
    found.uid() == own_uid() || found.uid() == 0
}

fn read(path: &Path) -> Result<Token, String> {
    let advice = "see admin.token and admin.token_file, or SHARDGATE__ADMIN__TOKEN";
    let read = || -> io::Result<Result<String, String>> {
        let file = File::open(path)?;
        let found = file.metadata()?;
        if !found.is_file() {
            return Ok(Err("is not a file; name one in admin.token_file".into()));
        }
        // Only root can have made that directory, and root may use the service of any user.
        let of_service = own_uid() == 0 && path.starts_with(SERVICE_HOME);
        if !is_ours(&found) && !of_service {
            return Ok(Err(format!("belongs to user {}: it must be ours or root's", found.uid())));
        }
        let mode = found.mode() & 0o777;
        if mode & 0o177 != 0 {
            return Ok(Err(format!("has mode {mode:04o}; others must not read it: chmod 0600")));
        }
        let mut text = String::new();
        // One byte more than a token and its line end, so that a longer file is refused.
        file.take(STATIC_TOKEN_BYTES_MAX as u64 + 3).read_to_string(&mut text)?;
        Ok(Ok(text))
    };
    let text = read().map_err(|error| at(path, format!("cannot read it: {error}; {advice}")))?;
    let text = text.map_err(|why| at(path, why))?;
    let token = text.trim_end_matches(['\r', '\n']);
    if !is_token(token) {
        return Err(at(path, "must be 16 to 256 visible characters on one line"));
    }
    Ok(Token(token.to_owned()))
}

/// Writes a new file, whole or not at all.
fn write_new(path: &Path, token: &Token) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let written = file.write_all(format!("{}\n", token.0).as_bytes());
    let written = written.and_then(|()| file.sync_all());
    // A part of a token would be refused at each start from then on.
    written.inspect_err(|_| drop(fs::remove_file(path)))
}

/// Replaces the token of a former run by a new one. No other gateway uses the file, as the socket
/// of that port is this one's.
fn replace(path: &Path) -> Result<Token, String> {
    let token = random();
    let new = path.with_extension(format!("{}.new", std::process::id()));
    let written = write_new(&new, &token).and_then(|()| fs::rename(&new, path));
    if let Err(error) = written {
        // It is there if it could not be renamed.
        let _ = fs::remove_file(&new);
        return Err(at(path, format!("cannot make it: {error}")));
    }
    Ok(token)
}

/// Directory of the token when no file is configured.
#[derive(Clone, PartialEq, Eq, Debug)]
struct TokenDir {
    dir: PathBuf,
    /// Whether systemd made the directory and set the variable; else the gateway makes it.
    given: bool,
}

impl TokenDir {
    fn of(env: impl Fn(&str) -> Option<OsString>) -> Self {
        let path = |name| env(name).filter(|text| !text.is_empty()).map(PathBuf::from);
        if let Some(list) = path("RUNTIME_DIRECTORY") {
            // systemd puts a colon between several directories.
            let first = std::env::split_paths(&list).next().unwrap_or(list);
            return Self { dir: first, given: true };
        }
        let dir = match path("XDG_RUNTIME_DIR") {
            Some(dir) => dir.join("shardgate"),
            None => PathBuf::from(format!("/tmp/shardgate-{}", own_uid())),
        };
        Self { dir, given: false }
    }

    fn file(&self, port: u16) -> PathBuf {
        self.dir.join(file_name(port))
    }

    /// Makes the directory if it does not exist.
    fn make(&self) -> Result<(), String> {
        if !self.given
            && let Err(error) = DirBuilder::new().mode(0o700).create(&self.dir)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(at(&self.dir, format!("cannot make the directory: {error}")));
        }
        self.check()
    }

    /// Checks that no other user can put a file or a link into the directory.
    fn check(&self) -> Result<(), String> {
        let advice = "remove it, or set admin.token_file";
        // The link itself and not its target: in /tmp any user could have made one.
        let found = fs::symlink_metadata(&self.dir)
            .map_err(|error| at(&self.dir, format!("cannot look at it: {error}")))?;
        let others = if self.given { 0o022 } else { 0o077 };
        if !found.is_dir() {
            return Err(at(&self.dir, format!("is not a directory; {advice}")));
        }
        let right = if self.given { is_ours(&found) } else { found.uid() == own_uid() };
        if !right {
            return Err(at(&self.dir, format!("belongs to user {}; {advice}", found.uid())));
        }
        if found.mode() & others != 0 {
            let mode = found.mode() & 0o777;
            return Err(at(&self.dir, format!("has mode {mode:04o}, others get in; {advice}")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
