//! The gateway that is put under load: a URL as people write it, and its address.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use http::Uri;

/// Time for a connection to one of several addresses of a name: around the world and back takes
/// some 0.3 s.
const TRY: Duration = Duration::from_secs(1);

/// A gateway.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// Whether it is spoken to with TLS.
    pub is_secure: bool,
    /// Host as the URL names it, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path and query.
    pub path: String,
}

impl Target {
    /// Reads a URL: `ws://` or `wss://`, and, as people write them, `http://`, `https://` or none.
    /// Without a path it gets `path`. The error is one line.
    pub fn parse(text: &str, path: &str) -> Result<Self, String> {
        // A password is not repeated.
        let shown = text.rsplit_once('@').map_or(text.to_owned(), |(_, host)| format!("…@{host}"));
        let wrong = |rule: &str| format!("{shown:?}: {rule}; write ws://HOST:PORT{path}");
        let (scheme, rest) = text.split_once("://").unwrap_or(("ws", text));
        let is_secure = match scheme.to_ascii_lowercase().as_str() {
            "ws" | "http" => false,
            "wss" | "https" => true,
            other => return Err(wrong(&format!("a gateway does not speak {other}"))),
        };
        if rest.contains('#') {
            return Err(wrong("the URL of a WebSocket has no fragment (#)"));
        }
        let uri: Uri = format!("ws://{rest}").parse().map_err(|_| wrong("this is no URL"))?;
        let authority = uri.authority().ok_or_else(|| wrong("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("a user in the URL is not sent: sign in with --token"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(wrong("it names no host"));
        }
        let after = authority.as_str().rsplit_once(']').map_or(authority.as_str(), |(_, a)| a);
        if after.contains(':') && authority.port_u16().is_none_or(|port| port == 0) {
            return Err(wrong("its port is not one of 1 to 65535"));
        }
        let port = authority.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
        let path = if matches!(uri.path(), "" | "/") { path } else { uri.path() };
        let path = match uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
        Ok(Self { is_secure, host, port, path })
    }

    /// The address behind the name; of several, the first that somebody listens at, as a name such
    /// as `localhost` stands for ::1 and 127.0.0.1. The error is one line.
    pub fn resolve(&self) -> Result<SocketAddr, String> {
        let found = (self.host.as_str(), self.port).to_socket_addrs();
        let why = match found.map(|all| listening(&all.collect::<Vec<_>>())) {
            Ok(Some(address)) => return Ok(address),
            Ok(None) => "it has no address".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(format!("{} cannot be looked up ({why}): correct the host in the URL", self.host))
    }

    /// Host and port, as in a `Host` header.
    pub fn authority(&self) -> String {
        let host = &self.host;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        format!("{host}:{}", self.port)
    }

    /// The URL.
    pub fn url(&self) -> String {
        let scheme = if self.is_secure { "wss" } else { "ws" };
        format!("{scheme}://{}{}", self.authority(), self.path)
    }
}

/// The first of several addresses that a connection can be made to; the first of all if there is
/// none, and so that the run tells why. One alone is not tried.
fn listening(addresses: &[SocketAddr]) -> Option<SocketAddr> {
    let is_there = |to: &&SocketAddr| TcpStream::connect_timeout(to, TRY).is_ok();
    let found = if addresses.len() > 1 { addresses.iter().find(is_there) } else { None };
    found.or(addresses.first()).copied()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn of_several_addresses_the_one_where_somebody_listens_is_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let there = listener.local_addr().expect("bound");
        // Nobody listens on the same port of another address.
        let nobody = SocketAddr::from(([127, 0, 0, 9], there.port()));
        assert_eq!(listening(&[nobody, there]), Some(there));
        assert_eq!(listening(&[there, nobody]), Some(there));
        assert_eq!(listening(&[nobody, nobody]), Some(nobody));
        assert_eq!((listening(&[nobody]), listening(&[])), (Some(nobody), None));
    }

    #[test]
    fn urls_are_read_as_people_write_them() {
        for (text, url) in [
            ("ws://127.0.0.1:9000/ws", "ws://127.0.0.1:9000/ws"),
            ("ws://127.0.0.1:9000", "ws://127.0.0.1:9000/ws"),
            ("127.0.0.1:9000", "ws://127.0.0.1:9000/ws"),
            ("localhost:9000/", "ws://localhost:9000/ws"),
            ("http://127.0.0.1:9000/chat?a=b", "ws://127.0.0.1:9000/chat?a=b"),
            ("ws://127.0.0.1:9000?a=b", "ws://127.0.0.1:9000/ws?a=b"),
            ("ws://127.0.0.1:9000/?a=b", "ws://127.0.0.1:9000/ws?a=b"),
            ("HTTPS://game.example.org", "wss://game.example.org:443/ws"),
            ("wss://[::1]:9443/ws", "wss://[::1]:9443/ws"),
            ("ws://[::1]", "ws://[::1]:80/ws"),
        ] {
            assert_eq!(Target::parse(text, "/ws").map(|target| target.url()), Ok(url.to_owned()));
        }
    }

    #[test]
    fn a_url_that_is_none_is_told_with_a_right_one() {
        for (text, rule) in [
            ("", "no URL"),
            ("ws://", "no URL"),
            ("ftp://a/", "does not speak ftp"),
            ("ws://a:0/ws", "its port"),
            ("ws://a:70000/ws", "its port"),
            ("ws://a:b/ws", "its port"),
            ("ws://user:secret@a/ws", "--token"),
            ("ftp://user:secret@a/ws", "does not speak ftp"),
            ("ws://a/ws#b", "fragment"),
            ("ws://a b/", "no URL"),
        ] {
            let why = Target::parse(text, "/ws").expect_err(text);
            assert!(why.contains(rule) && why.ends_with("write ws://HOST:PORT/ws"), "{why}");
            assert!(!why.contains("secret"), "{why}");
        }
    }

    #[test]
    fn a_name_without_an_address_is_told() {
        let target = Target::parse("nobody.invalid:1", "/ws").expect("a URL");
        let why = target.resolve().expect_err("no such name");
        assert!(why.starts_with("nobody.invalid cannot be looked up"), "{why}");
    }
}
