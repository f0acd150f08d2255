//! Callers of the registry, found by their tokens.

use std::fmt;
use std::sync::Arc;

use crate::config::settings::RegistryCaller;
use crate::control::caller_tokens::{CallerTokens, Named};

/// A caller, with the services that it may register instances of.
#[derive(Debug)]
pub struct Caller {
    /// Name in logs and of the caller's leases: a new token changes nothing about them.
    pub name: Arc<str>,
    services: Vec<Arc<str>>,
}

impl Caller {
    /// Whether the caller may change instances of `service`.
    pub fn may_change(&self, service: &str) -> bool {
        self.services.iter().any(|own| **own == *service)
    }
}

/// All callers of one configuration.
pub struct Callers {
    callers: Vec<Arc<Caller>>,
    tokens: CallerTokens,
}

impl fmt::Debug for Callers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.callers).finish()
    }
}

impl Callers {
    /// Reads the token files. The error is one line, and never shows the content of a file.
    pub fn new(settings: &[RegistryCaller]) -> Result<Self, String> {
        let named = settings.iter().map(|one| Named {
            name: &one.name,
            token: one.token.as_ref(),
            file: one.token_file.as_ref(),
        });
        let tokens = CallerTokens::read("registry_token", named)?;
        let caller = |one: &RegistryCaller| {
            Arc::new(Caller { name: one.name.clone(), services: one.services.clone() })
        };
        Ok(Self { callers: settings.iter().map(caller).collect(), tokens })
    }

    /// The caller with this token.
    pub fn find(&self, token: &[u8]) -> Option<&Arc<Caller>> {
        self.tokens.find(token).and_then(|at| self.callers.get(at))
    }
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
