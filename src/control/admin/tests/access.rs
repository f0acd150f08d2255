//! Access to the admin endpoint: origins, the token, and pages that need none.

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::*;
use crate::control::Listens;
use crate::control::admin::guard::Access;
use crate::control::admin::page;
use crate::control::admin::routes::Answer;

#[tokio::test]
async fn requests_that_another_page_can_make_a_browser_send_are_refused() {
    let rig = rig(&[Fake::Good]);
    let (own, port) = (format!("Host: {}", rig.admin), rig.admin.port());
    let cases = [
        (200, "GET /health", format!("Host: localhost:{port}")),
        (200, "GET /health", "Host: [::1]:1234".into()),
        (200, "GET /health", format!("{own}\r\nOrigin: http://{}", rig.admin)),
        (200, "GET /health", format!("{own}\r\nSec-Fetch-Site: same-origin")),
        // A person typed the address.
        (200, "GET /health", format!("{own}\r\nSec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate")),
        // DNS rebinding.
        (403, "GET /health", format!("Host: evil.example:{port}")),
        (403, "GET /health", format!("Host: localhost.evil.example:{port}")),
        (403, "GET /health", format!("Host: x@{}", rig.admin)),
        (403, "GET /health", "X: y".into()),
        (403, "GET /health", format!("{own}\r\n{own}")),
        (403, "GET /health", format!("{own}\r\nOrigin: http://evil.example")),
        (403, "GET /health", format!("{own}\r\nOrigin: https://{}", rig.admin)),
        (403, "GET /health", format!("{own}\r\nOrigin: null")),
        // An <img> or a link of another page; those carry no Origin.
        (403, "GET /health", format!("{own}\r\nSec-Fetch-Site: cross-site")),
        (
            403,
            "GET /health",
            format!("{own}\r\nSec-Fetch-Site: same-site\r\nSec-Fetch-Dest: image"),
        ),
        (403, "GET /metrics", format!("{own}\r\nSec-Fetch-Site: cross-site")),
        (405, "POST /health", own.clone()),
        (200, "HEAD /stats", own.clone()),
        (405, "OPTIONS /routing/stats", own.clone()),
        (405, "GET /reload", own.clone()),
        (405, "PUT /log", own.clone()),
        (405, "DELETE /instances/logic-1/drain", own.clone()),
        // The authority of an absolute target counts, and not Host (RFC 9112 section 3.2.2).
        (200, "GET http://localhost/health", "Host: evil.example".into()),
        (403, "GET http://evil.example/health", own.clone()),
        (403, "GET http://x@localhost/health", own.clone()),
        (403, "CONNECT evil.example:80", own.clone()),
        (404, "GET /other", own.clone()),
        (404, "POST /other", own),
    ];
    rig.healthy().await;
    for (expected, line, headers) in cases {
        let (status, _) = rig.raw(&format!("{line} HTTP/1.1\r\n{headers}\r\n\r\n")).await;
        assert_eq!(status, expected, "{line} {headers}");
    }
}

/// Kubelets, HAProxy, Nagios and sidecars ask: with any Host, with none, by OPTIONS, by HTTP/1.0.
#[tokio::test]
async fn probes_are_answered_whatever_host_they_name() {
    let rig = rig(&[Fake::Good]);
    rig.healthy().await;
    let hosts = ["Host: 10.1.2.3:8000", "Host: cluster_0", "Host: a\r\nHost: b", "Host:", "X: y"];
    for path in ["/healthz", "/readyz"] {
        for host in hosts {
            for method in ["GET", "OPTIONS"] {
                let request = format!("{method} {path} HTTP/1.1\r\n{host}\r\n\r\n");
                assert_eq!(rig.raw(&request).await, (200, "ok\n".into()), "{request}");
            }
        }
        let old = rig.raw(&format!("GET {path} HTTP/1.0\r\n\r\n")).await;
        assert_eq!(old, (200, "ok\n".into()));
        let absolute = format!("GET http://evil.example{path} HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(rig.raw(&absolute).await.0, 200);
        assert_eq!(rig.raw(&format!("HEAD {path} HTTP/1.0\r\n\r\n")).await, (200, "".into()));
        // It is no reason to answer pages of other origins.
        let page = "Host: evil.example\r\nOrigin: http://other.example";
        assert_eq!(rig.raw(&format!("GET {path} HTTP/1.1\r\n{page}\r\n\r\n")).await.0, 403);
    }
    assert_eq!(rig.raw("GET /stats HTTP/1.0\r\n\r\n").await.0, 403, "nothing else is");
}

#[tokio::test]
async fn the_port_speaks_http_1_only() {
    let rig = rig(&[Fake::Good]);
    rig.healthy().await;
    // The preface and the first frame of a client with prior knowledge (RFC 9113 section 3.4).
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let answer = whole(&rig, preface).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer:?}");
    let two = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2);
    assert_eq!(whole(&rig, &two).await.matches("HTTP/1.1 200").count(), 1);
}

#[tokio::test]
async fn a_page_of_another_origin_changes_nothing() {
    let rig = rig(&[Fake::Good]);
    rig.healthy().await;
    let own = format!("Host: {}", rig.admin);
    let bearer = format!("Authorization: Bearer {TOKEN}");
    let page = "Origin: http://evil.example\r\nSec-Fetch-Site: cross-site";
    let json = "Content-Type: application/json";
    let cases = [
        // A form, with the headers of Chromium; then of a browser without Fetch metadata.
        (
            403,
            format!(
                "{own}\r\n{page}\r\nSec-Fetch-Mode: navigate\r\n\
                 Sec-Fetch-Dest: document\r\nContent-Type: application/x-www-form-urlencoded"
            ),
        ),
        (403, format!("{own}\r\nOrigin: null\r\nContent-Type: application/x-www-form-urlencoded")),
        (401, format!("{own}\r\nContent-Type: application/x-www-form-urlencoded")),
        // fetch() with the content types that take no preflight.
        (
            403,
            format!(
                "{own}\r\n{page}\r\nSec-Fetch-Mode: no-cors\r\n\
                 Content-Type: text/plain;charset=UTF-8"
            ),
        ),
        (401, format!("{own}\r\nContent-Type: text/plain;charset=UTF-8")),
        // Even with the token, were it to leak.
        (403, format!("{own}\r\n{page}\r\n{json}\r\n{bearer}")),
        (403, format!("Host: evil.example\r\n{json}\r\n{bearer}")),
        (415, format!("{own}\r\n{bearer}")),
        (415, format!("{own}\r\n{bearer}\r\nContent-Type: text/plain")),
        (415, format!("{own}\r\n{bearer}\r\nContent-Type: application/json-seq")),
        (415, format!("{own}\r\n{bearer}\r\n{json}\r\nContent-Type: text/plain")),
        // Without the token, or with another one.
        (401, format!("{own}\r\n{json}")),
        (401, format!("{own}\r\n{json}\r\nAuthorization: Bearer a-token-of-the-testS")),
        (401, format!("{own}\r\n{json}\r\nAuthorization: Bearer ")),
        (401, format!("{own}\r\n{json}\r\nAuthorization: Basic {TOKEN}")),
        (401, format!("{own}\r\n{json}\r\n{bearer}\r\n{bearer}")),
        (
            200,
            format!(
                "{own}\r\nContent-Type: Application/JSON; charset=utf-8\r\n\
                 Authorization: bearer {TOKEN}"
            ),
        ),
    ];
    for (expected, headers) in cases {
        let request = format!("POST /reload HTTP/1.1\r\n{headers}\r\n\r\n");
        let (status, body) = rig.raw(&request).await;
        assert_eq!(status, expected, "{headers}: {body}");
        let reload = &rig.get("/health").await.1["last_reload"];
        assert_eq!(reload.is_null(), expected != 200, "{headers}");
    }
}

#[tokio::test]
async fn a_preflight_is_not_granted_and_refusals_say_what_lacks() {
    let rig = rig(&[Fake::Good]);
    rig.healthy().await;
    let own = format!("Host: {}", rig.admin);
    // A granted preflight would have headers of CORS in its answer.
    let preflight = format!(
        "OPTIONS /reload HTTP/1.1\r\n{own}\r\n{}\r\nAccess-Control-Request-Method: POST\r\n\
         Access-Control-Request-Headers: authorization,content-type",
        "Origin: http://evil.example"
    );
    for request in [preflight, format!("GET /stats HTTP/1.1\r\n{own}")] {
        let answer = whole(&rig, &format!("{request}\r\n\r\n")).await.to_lowercase();
        assert!(!answer.contains("access-control"), "{answer}");
        assert!(answer.contains("x-content-type-options: nosniff"), "{answer}");
    }
    let refused = whole(&rig, &format!("POST /reload HTTP/1.1\r\n{own}\r\n\r\n")).await;
    assert!(refused.to_lowercase().contains("www-authenticate: bearer"), "{refused}");
    let other = whole(&rig, &format!("GET /reload HTTP/1.1\r\n{own}\r\n\r\n")).await;
    assert!(other.to_lowercase().contains("allow: post"), "{other}");
}

/// The whole answer, with its headers.
pub(super) async fn whole(rig: &Rig, request: &str) -> String {
    let mut stream = TcpStream::connect(rig.admin).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// An endpoint on all interfaces with TLS, and a control that answers nothing but probes.
pub(super) struct TlsEndpoint {
    port: u16,
    pub(super) settings: AdminSettings,
    connector: TlsConnector,
    _dir: tempfile::TempDir,
}

impl TlsEndpoint {
    pub(super) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let signed = rcgen::generate_simple_self_signed(["admin.example".to_owned()]).unwrap();
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        std::fs::write(&cert, signed.cert.pem()).unwrap();
        std::fs::write(&key, signed.signing_key.serialize_pem()).unwrap();
        let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let address = listener.local_addr().unwrap();
        let settings = AdminSettings {
            listen: address,
            token: Some(TOKEN.into()),
            tls_cert: Some(cert),
            tls_key: Some(key),
            ..AdminSettings::default()
        };
        let info = ProcessInfo {
            node: "node".into(),
            boot_id: 1,
            cores: Default::default(),
            listens: Listens { plain: None, tls: None },
            started: std::time::Instant::now(),
            log_dropped: None,
        };
        let (requests, mut asked) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Some(request) = asked.recv().await {
                if let ControlRequest::Ready(reply) = request {
                    let _ = reply.send(true);
                }
            }
        });
        let admin = Admin { info: info.into(), requests, marks: Default::default() };
        tokio::spawn(serve(listener, address, &settings, 64, admin).unwrap());
        let mut roots = RootCertStore::empty();
        roots.add(signed.cert.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(crate::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(config));
        Self { port: address.port(), settings, connector, _dir: dir }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, self.port)).await.unwrap()
    }

    /// Status and body of one request with these headers.
    pub(super) async fn ask(&self, line: &str, headers: &str) -> (u16, String) {
        let name = "admin.example".try_into().unwrap();
        let mut stream = self.connector.connect(name, self.connect().await).await.unwrap();
        let request = format!("{line} HTTP/1.1\r\n{headers}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap_or_default().1.to_owned())
    }
}

const TLS_HOST: &str = "Host: admin.example:8000";

#[tokio::test]
async fn on_other_interfaces_everything_but_probes_takes_tls_and_the_token() {
    let endpoint = TlsEndpoint::start();
    // A client that connects and sends nothing holds up no other.
    let _idle = endpoint.connect().await;
    let bearer = format!("Authorization: Bearer {TOKEN}");
    let own = TLS_HOST;
    for (expected, line, headers) in [
        (200, "GET /healthz", own.to_owned()),
        (200, "GET /readyz", own.to_owned()),
        (200, "GET /readyz", "X: no host".to_owned()),
        (401, "GET /log", own.to_owned()),
        (401, "GET /metrics", format!("{own}\r\nAuthorization: Bearer x")),
        (200, "GET /log", format!("{own}\r\n{bearer}")),
        (200, "GET /log", format!("{own}\r\n{bearer}\r\nOrigin: https://admin.example:8000")),
        (403, "GET /log", format!("{own}\r\n{bearer}\r\nOrigin: http://admin.example:8000")),
        (403, "GET /log", format!("{own}\r\n{bearer}\r\nOrigin: https://evil.example")),
        (401, "POST /reload", format!("{own}\r\nContent-Type: application/json")),
    ] {
        let (status, body) = endpoint.ask(line, &headers).await;
        assert_eq!(status, expected, "{line} {headers}: {body}");
    }
    // Plain HTTP gets no answer.
    let mut plain = endpoint.connect().await;
    plain.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = plain.read_to_end(&mut rest).await;
    assert!(!rest.starts_with(b"HTTP"));
}

/// Walks the table, from another host and without the token. Control answers probes only, so that
/// no answer can hold data of the gateway.
#[tokio::test]
async fn without_the_token_static_pages_are_all_that_other_hosts_may_read() {
    let endpoint = TlsEndpoint::start();
    let json = format!("{TLS_HOST}\r\nContent-Type: application/json");
    let wrong = format!("{json}\r\nAuthorization: Bearer a-token-of-the-testS");
    let page = format!("{json}\r\nOrigin: https://evil.example");
    for route in ROUTES {
        let line = format!(
            "{} {}",
            route.method(),
            route.path.replace("{id}", "logic-1").replace("{page}", "tls")
        );
        for headers in [&json, &wrong] {
            let (status, body) = endpoint.ask(&line, headers).await;
            match route.answer {
                Answer::Static(page) => {
                    assert_eq!((status, &*body), (200, page.text), "{line}");
                }
                Answer::Library => {
                    assert_eq!((status, body), (200, page::LIBRARY.clone()), "{line}");
                }
                // Its handlers have no state: the compiler keeps them from data of the gateway.
                Answer::Stateless(_) => assert_eq!(status, 200, "{line}: {body}"),
                Answer::Probe(_) => assert_eq!((status, &*body), (200, "ok\n"), "{line}"),
                Answer::Read(_) | Answer::Change(_) => assert_eq!(status, 401, "{line}: {body}"),
            }
        }
        // A page of another origin gets the client library and nothing else.
        let expected = if route.access() == Access::Library { 200 } else { 403 };
        assert_eq!(endpoint.ask(&line, &page).await.0, expected, "{line}");
    }
}

/// A page becomes static by its row in the table: this list makes that a decision.
#[test]
fn the_static_pages_are_these_and_hold_no_data() {
    let is_static = |path: &&str| {
        let open = [Access::Static, Access::Library];
        ROUTES.iter().any(|route| route.path == *path && open.contains(&route.access()))
    };
    let pages: Vec<&str> = ROUTES.iter().map(|route| route.path).filter(is_static).collect();
    let dashboard = ["/ui", "/ui.css", "/ui.js", "/ui-charts.js", "/ui-actions.js"];
    let page = ["/page.css", "/page.js", "/icon.svg", "/client.js", "/client.d.ts"];
    let guide = ["/guide", "/guide/{page}", "/guide/guide.css", "/guide/way-of-a-message.svg"];
    assert_eq!(pages, [&["/"], &dashboard[..], &page, &guide, &["/robots.txt"]].concat());
    for path in pages {
        let rows = ROUTES.iter().filter(|route| route.path == path).count();
        assert_eq!(rows, 1, "{path}: one method");
    }
}

#[tokio::test]
async fn the_table_has_the_requirements_of_its_methods() {
    let rig = rig(&[Fake::Good]);
    rig.healthy().await;
    for route in ROUTES {
        let access = route.access();
        let changes = access == Access::Change;
        assert_eq!(route.method(), if changes { "POST" } else { "GET" }, "{}", route.path);
        // On a loopback address only changes take the token.
        let path = route.path.replace("{id}", "logic-1").replace("{page}", "tls");
        let query = if path == "/routing/explain" { "?msg_id=1000" } else { "" };
        let line = format!("{} {path}{query}", route.method());
        let request = format!("{line} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let (status, body) = rig.raw(&request).await;
        assert_eq!(status, if changes { 401 } else { 200 }, "{line}: {body}");
    }
}
