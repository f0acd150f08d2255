//! Callers of the registry and their tokens, which are compared in a time that says nothing about
//! them.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::config::settings::RegistryCaller;
use crate::config::{STATIC_TOKEN_BYTES_MAX, TOKEN_RULE, is_token};

/// A token, padded with zeros. No token contains a zero, so equal buffers are equal tokens, and a
/// comparison takes as long for every pair.
type Padded = [u8; STATIC_TOKEN_BYTES_MAX];

/// A caller, with the services that it may register instances of.
pub struct Caller {
    /// Name in logs and of the caller's leases: a new token changes nothing about them.
    pub name: Arc<str>,
    services: Vec<Arc<str>>,
    token: Padded,
}

impl Caller {
    /// Whether the caller may change instances of `service`.
    pub fn may_change(&self, service: &str) -> bool {
        self.services.iter().any(|own| **own == *service)
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("name", &self.name).finish_non_exhaustive()
    }
}

/// All callers of one configuration.
#[derive(Debug)]
pub struct Callers(Vec<Arc<Caller>>);

impl Callers {
    /// Reads the token files. The error is one line, and never shows the content of a file.
    pub fn new(settings: &[RegistryCaller]) -> Result<Self, String> {
        let mut callers: Vec<Arc<Caller>> = Vec::with_capacity(settings.len());
        for one in settings {
            let at = format!("[[registry_token]] {}", one.name);
            let token = match (&one.token, &one.token_file) {
                (Some(token), _) => token.expose().to_owned(),
                (None, Some(path)) => read(path)
                    .map_err(|why| format!("{at}: token_file {}: {why}", path.display()))?,
                (None, None) => return Err(format!("{at}: set one of token and token_file")),
            };
            let token =
                padded(token.as_bytes()).ok_or_else(|| format!("{at}: the token {TOKEN_RULE}"))?;
            if let Some(other) = callers.iter().find(|other| other.token == token) {
                let other = &other.name;
                return Err(format!(
                    "{at}: has the token of {other}: who it is could not be told; make another"
                ));
            }
            let services = one.services.clone();
            callers.push(Arc::new(Caller { name: one.name.clone(), services, token }));
        }
        Ok(Self(callers))
    }

    /// The caller with this token. Compares with all of all tokens, whatever it finds.
    pub fn find(&self, token: &[u8]) -> Option<&Arc<Caller>> {
        let token = padded(token)?;
        let mut found = Choice::from(0);
        let mut index = 0u32;
        for (at, caller) in self.0.iter().enumerate() {
            let same = caller.token.ct_eq(&token);
            index.conditional_assign(&(at as u32), same);
            found |= same;
        }
        if bool::from(found) { self.0.get(index as usize) } else { None }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(name: &str, token: &str) -> RegistryCaller {
        RegistryCaller {
            name: name.into(),
            token: Some(token.into()),
            token_file: None,
            services: vec!["logic".into()],
        }
    }

    const A: &str = "aaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbb";

    #[test]
    fn a_token_finds_its_caller_and_nothing_else_does() {
        let callers = Callers::new(&[caller("a", A), caller("b", B)]).unwrap();
        let name = |token: &str| callers.find(token.as_bytes()).map(|c| c.name.to_string());
        assert_eq!(name(A).as_deref(), Some("a"));
        assert_eq!(name(B).as_deref(), Some("b"));
        let (longer, longest) = (format!("{A}a"), "a".repeat(257));
        for wrong in [&A[1..], &longer, &longest, "", "a", "aaaaaaaaaaaaaaaa\0", "bbbbbbbbbbbbbbba"]
        {
            assert_eq!(name(wrong), None, "{wrong:?}");
        }
        let b = callers.find(B.as_bytes()).unwrap();
        assert!(b.may_change("logic") && !b.may_change("logi") && !b.may_change("chat"));
        assert!(!format!("{callers:?}").contains(A), "no token in Debug");
    }

    #[test]
    fn nobody_is_found_among_none() {
        assert!(Callers::new(&[]).unwrap().find(A.as_bytes()).is_none());
    }

    #[test]
    fn token_files_are_read_and_their_faults_told_without_their_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let of_file = || {
            Callers::new(&[RegistryCaller {
                token: None,
                token_file: Some(path.clone()),
                ..caller("a", "")
            }])
        };
        assert!(of_file().unwrap_err().contains("No such file"));
        std::fs::write(&path, format!("  {A}\n")).unwrap();
        assert!(of_file().unwrap().find(A.as_bytes()).is_some());
        std::fs::write(&path, "secret but short").unwrap();
        let error = of_file().unwrap_err();
        assert!(error.contains("16 to 256") && !error.contains("short"), "{error}");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(of_file().unwrap_err().contains("not a regular file"));
    }

    #[test]
    fn one_token_of_two_callers_is_refused() {
        let error = Callers::new(&[caller("a", A), caller("b", A)]).unwrap_err();
        assert!(error.contains("b: has the token of a") && !error.contains(A), "{error}");
    }
}
