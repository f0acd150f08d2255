//! The target of a request (RFC 9112 section 3.2), and the authorities in it and in `Host`.

use std::net::Ipv6Addr;

use super::Rule;

/// Schemes under which a WebSocket is asked for. A proxy in front may have ended TLS, or named the
/// request by the scheme of the page, so all of them are taken on every port. They have no case
/// (RFC 9110 section 4.2.3).
const SCHEMES: [&str; 4] = ["ws://", "wss://", "http://", "https://"];

const FRAGMENT: Rule = (400, "send no fragment (#) in the request target");
const NO_AUTHORITY: Rule =
    (400, "name host[:port] in an absolute request target, without user and password");

/// A request target without its query.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Target<'b> {
    /// The path; that of an absolute target without one is `/` (RFC 9110 section 4.2.3).
    pub(super) path: &'b str,
    /// Host and port of a target in absolute form, which a server must accept, and use in the
    /// place of `Host` (RFC 9112 section 3.2.2).
    pub(super) authority: Option<&'b str>,
}

impl<'b> Target<'b> {
    /// Takes `target` apart.
    pub(super) fn read(target: &'b str) -> Result<Self, Rule> {
        // No form of a target has one (RFC 9112 section 3.2).
        if target.contains('#') {
            return Err(FRAGMENT);
        }
        let absolute = SCHEMES.iter().find_map(|scheme| {
            let (start, rest) = target.split_at_checked(scheme.len())?;
            start.eq_ignore_ascii_case(scheme).then_some(rest)
        });
        let Some(absolute) = absolute else {
            return Ok(Self { path: before_query(target), authority: None });
        };
        // The authority ends at the path or, where that is empty, at the query.
        let end = absolute.find(['/', '?']).unwrap_or(absolute.len());
        let (authority, rest) = absolute.split_at(end);
        // An empty host must be refused (RFC 9110 section 4.2.1), and so should a user with a
        // password, which hides the host from people (section 4.2.4). `@` is in no host.
        if !is_authority(authority) {
            return Err(NO_AUTHORITY);
        }
        let path = before_query(rest);
        Ok(Self { path: if path.is_empty() { "/" } else { path }, authority: Some(authority) })
    }
}

fn before_query(target: &str) -> &str {
    target.split('?').next().unwrap_or(target)
}

/// Whether `text` is a host that is not empty, with a port or without (RFC 9110 section 7.2).
pub(super) fn is_authority(text: &str) -> bool {
    let end = match text.strip_prefix('[') {
        Some(literal) => literal.find(']').map_or(0, |at| at + 2),
        None => text.find(':').unwrap_or(text.len()),
    };
    let (host, port) = text.split_at(end);
    let host_ok = match host.strip_prefix('[') {
        Some(literal) => is_ip_literal(literal.strip_suffix(']').unwrap_or(literal)),
        None => is_registered_name(host),
    };
    host_ok && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

/// Whether `text` is what may stand behind the colon: nothing, or the number of a port (RFC 3986
/// section 3.2.3).
fn is_port(text: &str) -> bool {
    text.is_empty()
        || (text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok())
}

/// Whether `text` is a name or an IPv4 address (RFC 3986 section 3.2.2), but for the comma: with it
/// one could be read as two.
fn is_registered_name(text: &str) -> bool {
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = match (first, after) {
            (b'%', [a, b, after @ ..]) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => after,
            (byte, after) if byte.is_ascii_alphanumeric() => after,
            (byte, after) if b"-._~!$&'()*+;=".contains(byte) => after,
            _ => return false,
        };
    }
    !text.is_empty()
}

/// Whether `text` is an IPv6 address, with a zone (RFC 6874) or without. Addresses of later
/// versions do not exist.
fn is_ip_literal(text: &str) -> bool {
    let (address, zone) = text.split_once("%25").unwrap_or((text, "0"));
    address.parse::<Ipv6Addr>().is_ok() && is_registered_name(zone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(target: &str) -> Result<(&str, Option<&str>), u16> {
        Target::read(target).map(|t| (t.path, t.authority)).map_err(|(status, _)| status)
    }

    #[test]
    fn an_absolute_target_in_any_scheme_and_case_names_its_own_host() {
        for scheme in ["ws", "wss", "http", "https", "HTTP", "Wss", "hTTps"] {
            for (rest, path, authority) in [
                ("h/ws", "/ws", "h"),
                ("h:9000/ws?x=/y", "/ws", "h:9000"),
                ("h:/ws", "/ws", "h:"),
                ("[::1]:9000/ws", "/ws", "[::1]:9000"),
                ("h", "/", "h"),
                ("h?x=/ws", "/", "h"),
                ("h:80?http://u@other/ws", "/", "h:80"),
                ("h//ws", "//ws", "h"),
            ] {
                let target = format!("{scheme}://{rest}");
                assert_eq!(read(&target), Ok((path, Some(authority))), "{target}");
            }
        }
    }

    #[test]
    fn a_target_without_a_host_or_with_more_than_one_is_refused() {
        for rest in [
            "",
            "/",
            "/ws",
            "?x",
            ":80/ws",
            "u:p@h/ws",
            "u@h/ws",
            "@h/ws",
            "h:x/ws",
            "a:b:c/ws",
            "h:65536/ws",
            "h:+1/ws",
            "[::1/ws",
            "[h]/ws",
            "[]/ws",
            "[::1]x/ws",
            "h,i/ws",
            "%4/ws",
            "h\\i/ws",
            "\u{fc}/ws",
        ] {
            for scheme in ["http", "wss"] {
                assert_eq!(read(&format!("{scheme}://{rest}")), Err(400), "{scheme}://{rest}");
            }
        }
        for target in ["/ws#", "/ws?#", "/ws?a#b", "#", "http://h/ws#a", "http://h#/ws"] {
            assert_eq!(read(target), Err(400), "{target}");
        }
    }

    #[test]
    fn other_targets_are_paths() {
        for (target, path) in [
            ("/ws", "/ws"),
            ("/ws?", "/ws"),
            ("/ws?x=http://h/", "/ws"),
            ("//h/ws", "//h/ws"),
            ("ws", "ws"),
            ("*", "*"),
            ("http:/ws", "http:/ws"),
            ("ftp://h/ws", "ftp://h/ws"),
            ("w\u{fc}s://h", "w\u{fc}s://h"),
        ] {
            assert_eq!(read(target), Ok((path, None)), "{target}");
        }
    }

    #[test]
    fn hosts_are_told_from_what_is_none() {
        for good in [
            "h",
            "H.example",
            "h.",
            "a_b",
            "xn--bcher-kva.example",
            "1.2.3.4",
            "1.2.3.4:80",
            "h:",
            "h:0",
            "h:00080",
            "h:65535",
            "[::1]",
            "[::1]:9000",
            "[::ffff:1.2.3.4]:1",
            "%C3%BC",
            "[fe80::1%25eth0]:80",
            "a+b",
        ] {
            assert!(is_authority(good), "{good}");
        }
        for bad in [
            "",
            ":",
            ":80",
            "a:b:c",
            "a:b",
            "a:80:",
            "a:-1",
            "a:65536",
            "a b",
            "a,b",
            "a/b",
            "a@b",
            "::1",
            "[::1",
            "::1]",
            "[::1]:",
            "[::1]]",
            "[1.2.3.4]",
            "[::1%eth0]",
            "[::1%25]",
            "%",
            "%zz",
            "a?",
            "a#",
            "b\u{fc}cher.example",
            "[::1]9000",
            "[",
            "]",
            "a[::1]",
        ] {
            // An empty port is one of the grammar.
            assert_eq!(is_authority(bad), bad == "[::1]:", "{bad}");
        }
    }
}
