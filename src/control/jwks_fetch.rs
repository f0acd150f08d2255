//! Fetches the text of a JWK set over HTTP; `auth` parses it.

use std::io::Read;
use std::time::Duration;

use ureq::Agent;
use ureq::config::Config;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::config::auth::is_key_url;
use crate::config::key_files::JWKS_BYTES_MAX;
use crate::tls::authorities::Authorities;
use crate::tls::provider;

/// Longest time of a fetch; shorter than the wait for the first answer of the sources, which is 5
/// s.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(4);
/// Media types of JWK sets, so that no server sends a web page instead.
const ACCEPT: &str = "application/jwk-set+json, application/json";

/// Fetches `url`, whose server must be signed by one of `authorities`, within `timeout`, name
/// lookup, TLS and body included. Blocks: to be called on a thread of its own. The error says what
/// happened and is safe to log: nothing of the answer's body is in it.
///
/// Redirects are not followed: they would let a server at one address choose another, in the clear
/// or on this machine. Proxies of the environment are not used, for the same reason.
pub fn fetch_jwks(
    url: &str,
    authorities: &Authorities,
    timeout: Duration,
) -> Result<String, String> {
    if !is_key_url(url) {
        return Err("keys are fetched from https, or from this machine, only".into());
    }
    let mut roots = Vec::new();
    if url.starts_with("https://") {
        let certificates = authorities.certificates()?;
        roots.extend(certificates.iter().map(|der| Certificate::from_der(der).to_owned()));
    }
    let tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(provider())
        .root_certs(RootCerts::from(roots))
        .build();
    let config = Config::builder()
        .tls_config(tls)
        .timeout_global(Some(timeout))
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .proxy(None)
        .max_idle_connections(0)
        .user_agent("shardgate")
        .accept(ACCEPT)
        .build();
    let response = Agent::new_with_config(config).get(url).call();
    let response = response.map_err(|error| failed(&error, authorities.key()))?;
    let status = response.status();
    if status.as_u16() != 200 {
        return Err(format!("the answer is HTTP {}", status.as_u16()));
    }
    let mut bytes = Vec::new();
    let body = response.into_body().into_reader();
    body.take(JWKS_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > JWKS_BYTES_MAX {
        return Err(format!("the answer is larger than {JWKS_BYTES_MAX} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "the answer is not UTF-8".into())
}

/// The reason of a failure; `ca_key` names the file with the authorities.
fn failed(error: &ureq::Error, ca_key: &str) -> String {
    match error {
        ureq::Error::Timeout(at) => format!("no answer in time ({at})"),
        // Errors of the libraries hold addresses and no bodies; one line of them is enough.
        error => {
            let text = error.to_string().lines().next().unwrap_or("failed").to_owned();
            // BadSignature: another authority of the same name.
            match text.contains("UnknownIssuer") || text.contains("BadSignature") {
                true => format!("{text}; name the certificate of its authority in {ca_key}"),
                false => text,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{SocketAddr, TcpListener};
    use std::thread::{self, JoinHandle};

    use super::*;

    const LONG: Duration = Duration::from_secs(5);

    fn system() -> Authorities {
        Authorities::default()
    }

    /// Serves one connection: sends `answer` when the request's head is there, and returns that
    /// head. With `hang` the connection stays open until the client closes it.
    fn server(answer: Vec<u8>, hang: bool) -> (SocketAddr, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serve = move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                head.push(byte[0]);
            }
            // The client may have closed the connection.
            let _ = stream.write_all(&answer);
            while hang && stream.read(&mut byte).unwrap_or(0) == 1 {}
            String::from_utf8(head).unwrap()
        };
        (address, thread::spawn(serve))
    }

    fn fetch(answer: impl Into<Vec<u8>>) -> (Result<String, String>, String) {
        let (address, thread) = server(answer.into(), false);
        let found = fetch_jwks(&format!("http://{address}/keys?a=b"), &system(), LONG);
        (found, thread.join().unwrap())
    }

    fn answer(head: &str, body: &[u8]) -> Vec<u8> {
        let head = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    }

    #[test]
    fn a_set_is_fetched_as_it_is() {
        let (found, head) = fetch(answer("200 OK", b"{\"keys\":[]}"));
        assert_eq!(found.as_deref(), Ok("{\"keys\":[]}"));
        assert!(head.starts_with("GET /keys?a=b HTTP/1.1\r\n"), "{head}");
        assert!(head.to_lowercase().contains("accept: application/jwk-set+json"), "{head}");
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
        assert_eq!(fetch(chunked).0.as_deref(), Ok("{}"));
    }

    #[test]
    fn what_is_no_set_is_told() {
        let large = vec![b' '; JWKS_BYTES_MAX as usize + 1];
        let endless = [b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b' '; 1 << 20]].concat();
        let rows: [(Vec<u8>, &str); 8] = [
            (answer("302 Found\r\nLocation: http://127.0.0.1:1/", b""), "HTTP 302"),
            (answer("404 Not Found", b"secret words"), "HTTP 404"),
            (answer("500 Oh", b""), "HTTP 500"),
            (answer("204 No Content", b""), "HTTP 204"),
            (answer("200 OK", &large), "larger than 65536"),
            (endless, "larger than 65536"),
            (answer("200 OK", b"\xff"), "not UTF-8"),
            (b"SSH-2.0-OpenSSH\r\n".to_vec(), ""),
        ];
        for (answer, expected) in rows {
            let found = fetch(answer).0.expect_err(expected);
            assert!(found.contains(expected), "{found}");
            assert!(!found.contains("secret words"), "{found}");
        }
        let full = answer("200 OK", &large[1..]);
        assert_eq!(fetch(full).0.map(|text| text.len()), Ok(JWKS_BYTES_MAX as usize));
    }

    #[test]
    fn a_server_that_hangs_is_left() {
        for start in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"] {
            let (address, thread) = server(start.into(), true);
            let found =
                fetch_jwks(&format!("http://{address}/"), &system(), Duration::from_millis(200));
            assert!(found.is_err(), "{start:?} {found:?}");
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_server_that_is_not_there_is_told() {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(fetch_jwks(&format!("http://{gone}/"), &system(), LONG).is_err());
        // TLS to a server that speaks plain HTTP.
        let (address, thread) = server(b"HTTP/1.1 400 Bad\r\n\r\n".to_vec(), false);
        assert!(
            fetch_jwks(&format!("https://{address}/"), &system(), Duration::from_millis(500))
                .is_err()
        );
        thread.join().unwrap_or_default();
        for url in ["http://192.0.2.1/", "file:///etc/passwd", ""] {
            assert!(fetch_jwks(url, &system(), LONG).expect_err(url).contains("from https"));
        }
    }
}
