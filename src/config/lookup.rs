//! The name that is looked up in DNS for a service: `dns = "host:port"` or `dns = "srv:name"`.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Bytes of a label, and of a name as text without the dot at its end (RFC 1035 section 2.3.4).
const LABEL_BYTES_MAX: usize = 63;
const NAME_BYTES_MAX: usize = 253;

/// A service whose instances are found by a name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[allow(missing_docs)]
pub struct Lookup {
    pub service: Arc<str>,
    pub name: LookupName,
    pub family: Family,
}

/// The name that is looked up, and for what.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum LookupName {
    /// A and AAAA records; all instances listen on `port`.
    #[allow(missing_docs)]
    Host { host: Arc<str>, port: u16 },
    /// SRV records, which name hosts and ports.
    Srv(Arc<str>),
}

/// Addresses that are looked up: `dns_family = "any" | "v4" | "v6"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Family {
    /// IPv4 and IPv6.
    Any,
    /// A records alone.
    V4,
    /// AAAA records alone.
    V6,
}

impl Family {
    /// All of them, as the key names them.
    pub const WORDS: [(&'static str, Self); 3] =
        [("any", Self::Any), ("v4", Self::V4), ("v6", Self::V6)];

    /// Word of the key.
    pub fn word(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::V4 => "v4",
            Self::V6 => "v6",
        }
    }
}

impl LookupName {
    /// Reads the value of `dns`. The error is the rule that it breaks.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix("srv:") {
            Some(name) => srv(name),
            None => host_and_port(text),
        }
    }
}

/// As the key has it.
impl fmt::Display for LookupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host { host, port } => write!(f, "{host}:{port}"),
            Self::Srv(name) => write!(f, "srv:{name}"),
        }
    }
}

fn srv(name: &str) -> Result<LookupName, String> {
    if let Some((name, port)) = name.rsplit_once(':') {
        return Err(format!(
            "must have no port: SRV records name the ports; write \"srv:{name}\" without {port:?}"
        ));
    }
    check_name(name)?;
    Ok(LookupName::Srv(name.into()))
}

fn host_and_port(text: &str) -> Result<LookupName, String> {
    const ADDRESS: &str = "is an address, not a name: write it into instances, \
                           { id = \"...\", address = \"...\" }";
    let unbracketed = text.rsplit_once(':').map_or(text, |(host, _)| host);
    let is_ip = |s: &str| s.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    if is_ip(text) || is_ip(unbracketed) {
        return Err(ADDRESS.into());
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        let is_service = text.starts_with('_');
        return Err(match is_service {
            true => format!(
                "has no port; for the ports of its SRV records write \"srv:{text}\", else a host \
                 name and a port"
            ),
            false => "must be a host name and a port, e.g. \"chat.internal:50002\", or \"srv:\" \
                      and the name of SRV records, e.g. \"srv:_grpc._tcp.chat.internal\""
                .into(),
        });
    };
    check_name(host)?;
    let looks_like_ip = host.contains('.') && host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if looks_like_ip {
        return Err(format!("{host} is neither a name nor a whole address: correct it"));
    }
    match port.parse() {
        Ok(port) if port > 0 => Ok(LookupName::Host { host: host.into(), port }),
        Ok(_) | Err(_) => Err(format!("the port {port:?} must be 1 to 65535")),
    }
}

/// Whether a name can be in DNS. Names of containers have underscores, too.
fn check_name(name: &str) -> Result<(), String> {
    let labels = name.strip_suffix('.').unwrap_or(name);
    if labels.is_empty() {
        return Err("has no name: write a host name and a port, or \"srv:\" and a name".into());
    }
    if !labels.is_ascii() {
        let rule = "is not ASCII: write the name as DNS has it, in its xn-- form";
        return Err(rule.into());
    }
    if labels.len() > NAME_BYTES_MAX {
        return Err(format!(
            "has a name of {} bytes, which cannot exist: at most {NAME_BYTES_MAX}",
            labels.len()
        ));
    }
    labels.split('.').try_for_each(check_label)
}

fn check_label(label: &str) -> Result<(), String> {
    let is_known = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    match label.len() {
        0 => Err("has two dots in a row, or begins with one: remove a dot".into()),
        1..=LABEL_BYTES_MAX if label.starts_with('-') => {
            Err(format!("has the label {label:?}, which begins with '-': no name does"))
        }
        1..=LABEL_BYTES_MAX => match label.bytes().all(is_known) {
            true => Ok(()),
            false => Err(format!(
                "has the label {label:?}: a name has letters, digits, '-' and '_' between its dots"
            )),
        },
        bytes => Err(format!(
            "has the label {label:?} of {bytes} bytes, which cannot exist: at most \
             {LABEL_BYTES_MAX} between two dots"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_orchestrators_make_them_are_taken() {
        let host = |host: &str, port| LookupName::Host { host: host.into(), port };
        let long = format!("{}.internal", "a".repeat(63));
        for (text, expected) in [
            ("chat.internal:50002", host("chat.internal", 50002)),
            ("logic.game.svc.cluster.local.:1", host("logic.game.svc.cluster.local.", 1)),
            ("my_app_logic_1:7", host("my_app_logic_1", 7)),
            ("Logic.Example:65535", host("Logic.Example", 65535)),
            ("logic:50001", host("logic", 50001)),
            ("3f2a9c01b7de:50001", host("3f2a9c01b7de", 50001)),
            ("42:50001", host("42", 50001)),
            ("_grpc._tcp.logic:50001", host("_grpc._tcp.logic", 50001)),
            (&format!("{long}:1"), host(&long, 1)),
            ("srv:_grpc._tcp.logic", LookupName::Srv("_grpc._tcp.logic".into())),
            ("srv:logic.service.consul.", LookupName::Srv("logic.service.consul.".into())),
            ("srv:logic", LookupName::Srv("logic".into())),
        ] {
            assert_eq!(LookupName::parse(text).as_ref(), Ok(&expected), "{text}");
            assert_eq!(expected.to_string(), text);
        }
    }

    #[test]
    fn what_cannot_work_is_refused_with_a_sentence() {
        let (label, name) = ("a".repeat(64), format!("{}a", "abc.".repeat(64)));
        for (text, part) in [
            ("10.0.0.7:50001", "is an address"),
            ("[fd00::7]:50001", "is an address"),
            ("fd00::7", "is an address"),
            ("10.0.0.7", "is an address"),
            ("10.0.0:50001", "neither a name nor a whole address"),
            ("chat.internal", "must be a host name and a port"),
            ("_grpc._tcp.logic", "write \"srv:_grpc._tcp.logic\""),
            ("srv:_grpc._tcp.logic:50001", "must have no port"),
            ("srv:", "has no name"),
            (":50001", "has no name"),
            (".:50001", "has no name"),
            ("chat..internal:1", "two dots"),
            (".chat:1", "two dots"),
            ("chat.internal..:1", "two dots"),
            ("-chat:1", "begins with '-'"),
            ("chat internal:1", "letters, digits"),
            ("http://chat:1", "letters, digits"),
            ("müller.example:1", "xn--"),
            ("chat:0", "must be 1 to 65535"),
            ("chat:65536", "must be 1 to 65535"),
            ("chat:http", "must be 1 to 65535"),
            (&format!("{label}.internal:1"), "64 bytes, which cannot exist"),
            (&format!("{name}:1"), "257 bytes, which cannot exist"),
            (&format!("srv:{label}"), "64 bytes, which cannot exist"),
        ] {
            let rule = LookupName::parse(text).expect_err(text);
            assert!(rule.contains(part), "{text}: {rule}");
        }
    }
}
