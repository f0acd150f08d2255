//! Tokens of those who call the gateway, each from the configuration or a file. They are compared
//! in a time that says nothing about them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::config::settings::Secret;
use crate::config::{STATIC_TOKEN_BYTES_MAX, TOKEN_RULE, is_token};

/// A token, padded with zeros. No token contains a zero, so equal buffers are equal tokens, and a
/// comparison takes as long for every pair.
type Padded = [u8; STATIC_TOKEN_BYTES_MAX];

/// A caller as the configuration names it.
#[derive(Debug)]
pub struct Named<'a> {
    pub name: &'a Arc<str>,
    /// The token; `None` = in the file.
    pub token: Option<&'a Secret>,
    /// The file that holds it.
    pub file: Option<&'a PathBuf>,
}

/// The tokens of all callers of a kind, in their order. Nothing shows them.
pub struct CallerTokens(Vec<Padded>);

impl CallerTokens {
    /// Reads the token files of callers that stand in the tables `[[table]]`. The error is one
    /// line, and never shows the content of a file.
    pub fn read<'a>(table: &str, callers: impl Iterator<Item = Named<'a>>) -> Result<Self, String> {
        let mut tokens: Vec<(&str, Padded)> = Vec::new();
        for Named { name, token, file } in callers {
            let at = format!("[[{table}]] {name}");
            let token = match (token, file) {
                (Some(token), _) => token.expose().to_owned(),
                (None, Some(path)) => read(path)
                    .map_err(|why| format!("{at}: token_file {}: {why}", path.display()))?,
                (None, None) => return Err(format!("{at}: set one of token and token_file")),
            };
            let token =
                padded(token.as_bytes()).ok_or_else(|| format!("{at}: the token {TOKEN_RULE}"))?;
            if let Some((other, _)) = tokens.iter().find(|(_, other)| *other == token) {
                return Err(format!(
                    "{at}: has the token of {other}: who it is could not be told; make another"
                ));
            }
            tokens.push((name, token));
        }
        Ok(Self(tokens.into_iter().map(|(_, token)| token).collect()))
    }

    /// The place of the caller with this token. Compares with all of all tokens, whatever it finds.
    pub fn find(&self, token: &[u8]) -> Option<usize> {
        let token = padded(token)?;
        let mut found = Choice::from(0);
        let mut index = 0u32;
        for (at, own) in self.0.iter().enumerate() {
            let same = own.ct_eq(&token);
            index.conditional_assign(&(at as u32), same);
            found |= same;
        }
        bool::from(found).then_some(index as usize)
    }
}

fn padded(token: &[u8]) -> Option<Padded> {
    let text = std::str::from_utf8(token).ok().filter(|text| is_token(text))?;
    let mut buffer = [0; STATIC_TOKEN_BYTES_MAX];
    buffer[..text.len()].copy_from_slice(text.as_bytes());
    Some(buffer)
}

/// Reads a token from a file, without the white space around it.
fn read(path: &Path) -> Result<String, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    // A pipe would make the gateway wait for its writer.
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return Err("is not a regular file".into());
    }
    let mut text = String::new();
    let mut few = file.take(4 * STATIC_TOKEN_BYTES_MAX as u64);
    few.read_to_string(&mut text).map_err(|error| error.to_string())?;
    let token = text.trim();
    if is_token(token) { Ok(token.into()) } else { Err(format!("the token {TOKEN_RULE}")) }
}
