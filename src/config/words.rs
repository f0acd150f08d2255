//! Rules for single words of the configuration: names, tokens, paths, addresses, variables. Every
//! section uses this file, and it uses none of them.

use std::net::SocketAddr;
use std::path::Path;

use super::rule::TextRule;

/// Rule of [`is_name`]: names become metric labels and log fields.
pub const NAME_RULE: TextRule = TextRule::new("1 to 64 letters, digits, '-', '_' or '.'", "");

/// Whether `s` can be the name of a service, an instance, a node, a user or a key.
pub fn is_name(s: &str) -> bool {
    (1..=64).contains(&s.len())
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// Characters of a token: 16 random bytes in base64 are 22; fewer can be guessed.
const TOKEN_CHARS_MIN: usize = 16;
/// Longest such token, which is configured and never changes. Comparisons pad both sides to it.
pub const STATIC_TOKEN_BYTES_MAX: usize = 256;

/// Rule of [`is_token`].
pub const TOKEN_RULE: TextRule = TextRule::new(
    "16 to 256 visible characters without spaces",
    ", e.g. from: openssl rand -hex 16",
);

/// Whether `s` can be a bearer token of the admin endpoint or of the registry.
pub fn is_token(s: &str) -> bool {
    (TOKEN_CHARS_MIN..=STATIC_TOKEN_BYTES_MAX).contains(&s.len())
        && s.bytes().all(|b| b.is_ascii_graphic())
}

/// Rule of [`is_path`].
pub const PATH_RULE: TextRule = TextRule::new("the path of a file", "");

/// Whether `s` can be the path of a file: the kernel takes any bytes but 0.
pub fn is_path(s: &str) -> bool {
    !s.contains('\0')
}

/// Rule of [`is_address`].
pub const ADDRESS_RULE: TextRule = TextRule::new(
    "an IP address and a port",
    ", e.g. \"127.0.0.1:9000\" (host names are not looked up)",
);
/// Rule of the name of a service that the files have.
pub const SERVICE_RULE: TextRule = TextRule::new("the name of a [[service]]", "");

/// Whether `s` is an IP address and a port.
pub fn is_address(s: &str) -> bool {
    s.parse::<SocketAddr>().is_ok()
}

/// Prefix of the environment variables that set keys.
const ENV_PREFIX: &str = "SHARDGATE__";

/// The environment variable that sets `key`.
pub fn variable(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.replace('.', "__").to_uppercase())
}

/// The key that the environment variable `name` sets: the inverse of [`variable`].
pub fn key_of_variable(name: &str) -> Option<String> {
    Some(name.strip_prefix(ENV_PREFIX)?.to_lowercase().replace("__", "."))
}

/// This program as a word of a shell command: as it was called, so that the command works where
/// this one did.
pub fn program() -> String {
    std::env::args_os().next().map_or("shardgate".into(), |name| shell_word(Path::new(&name)))
}

/// `path` as one word of a shell command.
pub fn shell_word(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_of_a_command() {
        assert_eq!(shell_word(Path::new("/etc/shard-gate")), "/etc/shard-gate");
        assert_eq!(shell_word(Path::new("it's a; b")), "'it'\\''s a; b'");
    }
}
