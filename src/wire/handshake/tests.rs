//! The upgrade: a table of malformed and hostile requests, and any split of a request.

use proptest::prelude::*;

use super::*;

mod clients;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const BYTES_MAX: usize = 8 << 10;
const FIELDS_MAX: usize = 64;

fn rules() -> HandshakeRules {
    HandshakeRules {
        path: "/ws".to_owned(),
        origins: Vec::new(),
        admin_pages: None,
        tenant_origins: Vec::new(),
        subprotocols: true,
        limits: HeaderLimits { header_bytes_max: BYTES_MAX, headers_max: FIELDS_MAX },
    }
}

/// A good request with one line replaced (by its start) and lines added.
fn request(replace: &str, by: &str, add: &str) -> Vec<u8> {
    let lines = [
        "GET /ws HTTP/1.1",
        "Host: gate.example:9000",
        "Upgrade: websocket",
        "Connection: Upgrade",
        &format!("Sec-WebSocket-Key: {KEY}"),
        "Sec-WebSocket-Version: 13",
    ];
    let mut out = String::new();
    for line in lines {
        let line = if !replace.is_empty() && line.starts_with(replace) { by } else { line };
        if !line.is_empty() {
            out.push_str(line);
            out.push_str("\r\n");
        }
    }
    out.push_str(add);
    out.push_str("\r\n");
    out.into_bytes()
}

fn with(add: &str) -> Vec<u8> {
    request("", "", add)
}

fn upgrade_with(rules: &HandshakeRules, input: &[u8]) -> Progress {
    let whole = try_upgrade(rules, None, input, &mut 0);
    // Byte by byte the result is the same, if perhaps earlier.
    let mut scanned = 0;
    let last = (1..=input.len())
        .map(|len| try_upgrade(rules, None, &input[..len], &mut scanned))
        .find(|progress| *progress != Progress::Partial);
    assert_eq!(last.unwrap_or(Progress::Partial), whole);
    whole
}

fn status_of(input: &[u8]) -> u16 {
    match upgrade_with(&rules(), input) {
        Progress::Partial => 0,
        Progress::Upgrade { .. } => 101,
        Progress::Refuse { status, response, why, .. } => {
            assert_eq!(response, refuse(status, &why));
            status
        }
    }
}

#[test]
fn the_request_of_the_rfc_is_answered_with_its_key() {
    let mut input = with("");
    let consumed_all = input.len();
    input.extend(b"\x81\x80frames");
    let Progress::Upgrade { consumed, response, encoding, token, page: _, told } =
        try_upgrade(&rules(), None, &input, &mut 0)
    else {
        panic!("refused")
    };
    assert_eq!(consumed, consumed_all, "what follows is for the frame decoder");
    assert_eq!(
        std::str::from_utf8(&response).unwrap(),
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    );
    assert_eq!((encoding, token, told), (Encoding::Json, None, None));
}

#[test]
fn every_bad_request_has_its_status() {
    let many: String = (0..65).map(|i| format!("X-{i}: 1\r\n")).collect();
    let key = |value: &str| request("Sec-WebSocket-Key", value, "");
    let cases: &[(&str, Vec<u8>, u16)] = &[
        ("POST", request("GET", "POST /ws HTTP/1.1", ""), 405),
        ("HEAD", request("GET", "HEAD /ws HTTP/1.1", ""), 405),
        ("HTTP/1.0", request("GET", "GET /ws HTTP/1.0", ""), 505),
        ("HTTP/2.0", request("GET", "GET /ws HTTP/2.0", ""), 505),
        ("HTTP/0.9", request("GET", "GET /ws", ""), 400),
        ("two spaces", request("GET", "GET  /ws HTTP/1.1", ""), 400),
        ("no Host", request("Host", "", ""), 400),
        ("two Hosts", with("Host: gate.example:9000\r\n"), 400),
        ("empty Host", request("Host", "Host:", ""), 400),
        ("a path in Host", request("Host", "Host: a/b", ""), 400),
        ("two hosts in Host", request("Host", "Host: a, b", ""), 400),
        ("no Upgrade", request("Upgrade", "", ""), 426),
        ("other Upgrade", request("Upgrade", "Upgrade: h2c", ""), 426),
        ("no Connection", request("Connection", "", ""), 426),
        ("other Connection", request("Connection", "Connection: keep-alive", ""), 426),
        ("no key", key(""), 400),
        ("short key", key("Sec-WebSocket-Key: dGhlIHNhbXBsZQ=="), 400),
        ("long key", key("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQAA"), 400),
        ("key not base64", key("Sec-WebSocket-Key: !!!!IHNhbXBsZSBub25jZQ=="), 400),
        ("two keys", with(&format!("Sec-WebSocket-Key: {KEY}\r\n")), 400),
        ("no version", request("Sec-WebSocket-V", "", ""), 426),
        ("version 8", request("Sec-WebSocket-V", "Sec-WebSocket-Version: 8", ""), 426),
        ("two versions", with("Sec-WebSocket-Version: 13\r\n"), 426),
        ("body", with("Content-Length: 5\r\n"), 400),
        ("two lengths", with("Content-Length: 0\r\nContent-Length: 0\r\n"), 400),
        ("a list of lengths", with("Content-Length: 0, 0\r\n"), 400),
        ("no body", with("Content-Length: 0\r\n"), 101),
        ("chunked", with("Transfer-Encoding: chunked\r\n"), 400),
        ("both", with("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n"), 400),
        ("folded", with("X-A: b\r\n c\r\n"), 400),
        ("bare LF", with("X-A: b\nX-C: d\r\n"), 400),
        ("only bare LF", b"GET /ws HTTP/1.1\nHost: a\n\n".to_vec(), 400),
        ("bare CR", with("X-A: b\rc\r\n"), 400),
        ("NUL", with("X-A: b\0c\r\n"), 400),
        ("control", with("X-A: b\x01c\r\n"), 400),
        ("space before colon", with("X-A : b\r\n"), 400),
        ("no colon", with("X-A\r\n"), 400),
        ("empty name", with(": b\r\n"), 400),
        ("65 more fields", with(&many), 431),
        ("8 KiB", with(&format!("X: {}\r\n", "a".repeat(8192))), 431),
        ("long target", request("GET", &format!("GET /{} HTTP/1.1", "a".repeat(2048)), ""), 414),
        ("longer", request("GET", &format!("GET /{} HTTP/1.1", "a".repeat(9000)), ""), 414),
    ];
    for (name, input, status) in cases {
        assert_eq!(status_of(input), *status, "{name}");
    }
}

#[test]
fn every_bad_request_line_or_host_has_its_status() {
    let key = |value: &str| request("Sec-WebSocket-Key", value, "");
    let cases: &[(&str, Vec<u8>, u16)] = &[
        ("other path", request("GET", "GET /wsx HTTP/1.1", ""), 404),
        ("relative path", request("GET", "GET ws HTTP/1.1", ""), 404),
        ("asterisk", request("GET", "GET * HTTP/1.1", ""), 404),
        ("query", request("GET", "GET /ws?a=b HTTP/1.1", ""), 101),
        ("absolute", request("GET", "GET http://gate.example:9000/ws HTTP/1.1", ""), 101),
        ("absolute, no path", request("GET", "GET http://gate.example HTTP/1.1", ""), 404),
        ("any case", request("Connection", "connection: keep-alive, UPGRADE", ""), 101),
        ("absolute, no host", request("GET", "GET http:///ws HTTP/1.1", ""), 400),
        ("absolute, query", request("GET", "GET http://h?x=/ws HTTP/1.1", ""), 404),
        ("a user", request("GET", "GET http://u:p@h/ws HTTP/1.1", ""), 400),
        ("a fragment", request("GET", "GET /ws?# HTTP/1.1", ""), 400),
        ("three words and a space", request("GET", "GET /ws HTTP/1.1 ", ""), 400),
        ("a tab", request("GET", "GET /ws\tHTTP/1.1", ""), 400),
        ("another protocol", request("GET", "GET /ws http/1.1", ""), 400),
        ("HTTP/1.10", request("GET", "GET /ws HTTP/1.10", ""), 505),
        ("HTTP/3", request("GET", "GET /ws HTTP/3", ""), 505),
        ("two ports in Host", request("Host", "Host: a:b:c", ""), 400),
        ("a port over 65535", request("Host", "Host: a:65536", ""), 400),
        ("a user in Host", request("Host", "Host: u@a", ""), 400),
        ("half an IPv6 Host", request("Host", "Host: [::1", ""), 400),
        ("IPv6 without brackets", request("Host", "Host: ::1", ""), 400),
        ("version 13 and 8", request("Sec-WebSocket-V", "Sec-WebSocket-Version: 13, 8", ""), 426),
        ("empty version", request("Sec-WebSocket-V", "Sec-WebSocket-Version:", ""), 426),
        ("empty Upgrade", request("Upgrade", "Upgrade: ,", ""), 426),
        ("empty Connection", request("Connection", "Connection:", ""), 426),
        ("key without padding", key("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ"), 400),
        ("key in base64url", key("Sec-WebSocket-Key: __hlIHNhbXBsZSBub25jZQ=="), 400),
        ("folded empty line", [b"\r\n \r\n".to_vec(), with("")].concat(), 400),
        ("fold before a field", request("Host", " Host: a", ""), 400),
        ("h2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), 400),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), 400),
    ];
    for (name, input, status) in cases {
        assert_eq!(status_of(input), *status, "{name}");
    }
}

#[test]
fn what_cannot_become_a_request_is_refused_without_waiting_for_its_end() {
    for start in
        [&b"\x16\x03\x01"[..], b"PRI * HTT", b"get /", b"{\"a\":1}", b" GET", b"\rG", b"\n"]
    {
        assert_eq!(status_of(start), 400, "{start:?}");
    }
    assert_eq!(status_of(&[b'A'; 30]), 400);
    assert_eq!(status_of(b"GET /ws HTTP/1.1\r\nHost: a\n"), 400);
    assert_eq!(status_of(&[b"GET /".to_vec(), vec![b'a'; 8187]].concat()), 414);
    assert_eq!(status_of(&[b"GET / HTTP/1.1\r\nA: ".to_vec(), vec![b'a'; 8173]].concat()), 431);
    for start in
        [&b""[..], b"\r", b"\r\n", b"G", b"GET /ws HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: a\r"]
    {
        assert_eq!(status_of(start), 0, "{start:?}");
    }
}

#[test]
fn headers_of_exactly_the_limit_pass_and_one_byte_more_do_not() {
    let pad = BYTES_MAX - with("X: \r\n").len();
    assert_eq!(status_of(&with(&format!("X: {}\r\n", "a".repeat(pad)))), 101);
    assert_eq!(status_of(&with(&format!("X: {}\r\n", "a".repeat(pad + 1)))), 431);
    let few: String = (0..FIELDS_MAX - 5).map(|i| format!("X-{i}: 1\r\n")).collect();
    assert_eq!(status_of(&with(&few)), 101);
    assert_eq!(status_of(&with(&format!("{few}Y: 1\r\n"))), 431);
    // The text names the key and its value.
    let many = HandshakeRules {
        limits: HeaderLimits { header_bytes_max: 40_000, headers_max: 300 },
        ..rules()
    };
    let big = |len| with(&format!("Cookie: {}\r\n", "a".repeat(len)));
    let fields = |n| with(&(0..n).map(|i| format!("X-{i}: 1\r\n")).collect::<String>());
    for (input, said) in [
        (big(39_000), ""),
        (big(40_000), "send at most 40000 bytes of headers (conn.header_bytes_max)"),
        (fields(295), ""),
        (fields(296), "send at most 300 header fields (conn.headers_max)"),
    ] {
        let got = match upgrade_with(&many, &input) {
            Progress::Refuse { why, status: 431, .. } => why.into_owned(),
            other => {
                assert!(matches!(other, Progress::Upgrade { .. }), "{other:?}");
                String::new()
            }
        };
        assert_eq!(got, said);
    }
}

#[test]
fn an_absolute_target_decides_instead_of_host() {
    let get = |target: &str, host: &str, origin: &str| {
        let add = if origin.is_empty() { String::new() } else { format!("Origin: {origin}\r\n") };
        let input = request("GET", &format!("GET {target} HTTP/1.1"), &add);
        let text = String::from_utf8(input).unwrap();
        status_of(text.replace("gate.example:9000", host).as_bytes())
    };
    for scheme in ["ws", "wss", "http", "https", "HTTP", "Wss"] {
        let target = format!("{scheme}://gate.example/ws");
        assert_eq!(get(&target, "gate.example", ""), 101, "{target}");
        assert_eq!(get(&target, "other:1", "http://gate.example"), 101, "{target}");
        assert_eq!(get(&target, "other:1", "http://other:1"), 403, "{target}");
        // Host must be there and be valid all the same; an empty one is.
        assert_eq!(get(&target, "", ""), 101, "{target}");
        assert_eq!(get(&target, "a:b:c", ""), 400, "{target}");
        assert_eq!(get(&target, "a\r\nHost: b", ""), 400, "{target}");
    }
    let root = HandshakeRules { path: "/".to_owned(), ..rules() };
    let input = request("GET", "GET wss://gate.example?x HTTP/1.1", "");
    assert!(matches!(upgrade_with(&root, &input), Progress::Upgrade { .. }), "no path is /");
}

#[test]
fn empty_lines_before_the_request_are_ignored() {
    for lines in [1, 2, EMPTY_LINES_MAX] {
        let mut input = "\r\n".repeat(lines).into_bytes();
        input.extend(with(""));
        let whole = input.len();
        input.extend(b"frames");
        let Progress::Upgrade { consumed, .. } = upgrade_with(&rules(), &input) else {
            panic!("{lines} lines")
        };
        assert_eq!(consumed, whole);
    }
    let many = "\r\n".repeat(EMPTY_LINES_MAX + 1);
    assert_eq!(status_of(many.as_bytes()), 400, "at once");
    assert_eq!(status_of(b"\n"), 400);
    assert_eq!(status_of(b"\r\n\n"), 400);
}

#[test]
fn a_later_minor_version_of_http_1_is_read_as_1_1() {
    for version in ["HTTP/1.2", "HTTP/1.9"] {
        assert_eq!(status_of(&request("GET", &format!("GET /ws {version}"), "")), 101);
    }
}

#[test]
fn a_key_whose_padding_bits_are_not_zero_is_answered() {
    // The bits of the last character that mean nothing: any of 16 values.
    for last in ["ZQ", "ZR", "ZS", "Zf"] {
        let key = format!("dGhlIHNhbXBsZSBub25j{last}==");
        let input = request("Sec-WebSocket-Key", &format!("Sec-WebSocket-Key: {key}"), "");
        let Progress::Upgrade { response, .. } = upgrade_with(&rules(), &input) else {
            panic!("{key}")
        };
        let accept = derive_accept_key(key.as_bytes());
        assert!(String::from_utf8(response).unwrap().contains(&accept), "of the text that came");
    }
}

#[test]
fn empty_elements_of_lists_are_none() {
    let version =
        |value: &str| request("Sec-WebSocket-V", &format!("Sec-WebSocket-Version:{value}"), "");
    for value in [" 13,", " ,13", " , 13 ,,"] {
        assert_eq!(status_of(&version(value)), 101, "{value}");
    }
    let upgrade = request("Upgrade", "Upgrade: , websocket ,", "Upgrade:\r\n");
    assert_eq!(status_of(&upgrade), 101);
    let connection =
        request("Connection", "Connection: ,keep-alive,,Upgrade,", "Connection: ,\r\n");
    assert_eq!(status_of(&connection), 101);
    for empty in ["", ",", " , ,"] {
        for field in ["Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions"] {
            let line = format!("{field}:{empty}\r\n");
            assert_eq!(negotiated(&rules(), &line), Some((Encoding::Json, None)), "{line}");
        }
    }
    let json = Some((Encoding::Json, Some(JSON.to_owned())));
    assert_eq!(negotiated(&rules(), "Sec-WebSocket-Protocol: ,shardgate.v1.json,\r\n"), json);
    let two = "Sec-WebSocket-Protocol:\r\nSec-WebSocket-Protocol: shardgate.v1.json\r\n";
    assert_eq!(negotiated(&rules(), two), json);
}

#[test]
fn only_allowed_origins_pass() {
    let own: &[(&str, u16)] = &[
        ("http://gate.example:9000", 101),
        ("https://gate.example:9000", 101),
        ("HTTP://Gate.Example:9000", 101),
        ("http://gate.example", 403),
        ("http://gate.example:90000", 403),
        ("http://gate.example:9000.evil", 403),
        ("http://evil/gate.example:9000", 403),
        ("http://evil@gate.example:9000", 403),
        ("http://gate.example:9000/", 403),
        ("chrome-extension://gate.example:9000", 403),
        ("null", 403),
        ("", 403),
        ("http://a\r\nOrigin: http://gate.example:9000", 400),
    ];
    for (origin, status) in own {
        assert_eq!(status_of(&with(&format!("Origin: {origin}\r\n"))), *status, "{origin}");
    }
    for (host, origin, status) in [
        ("a.b", "http://a.b", 101),
        ("a.b", "http://a.b:80", 101),
        ("a.b:80", "http://a.b", 101),
        ("a.b:443", "https://a.b", 101),
        ("a.b:", "https://a.b", 101),
        ("a.b:443", "http://a.b", 403),
        ("[::1]:9000", "http://[::1]:9000", 101),
    ] {
        let input = request("Host", &format!("Host: {host}"), &format!("Origin: {origin}\r\n"));
        assert_eq!(status_of(&input), status, "{host} {origin}");
    }
    let origins = vec![AllowedOrigin::read("https://game.example").unwrap()];
    let rules = HandshakeRules { origins, ..rules() };
    for (origin, ok) in [
        ("https://game.example", true),
        ("http://game.example", false),
        ("https://game.example.evil", false),
        ("https://xgame.example", false),
        ("http://gate.example:9000", false),
        ("null", false),
    ] {
        let progress = upgrade_with(&rules, &with(&format!("Origin: {origin}\r\n")));
        assert_eq!(matches!(progress, Progress::Upgrade { .. }), ok, "{origin}");
    }
    assert!(matches!(upgrade_with(&rules, &with("")), Progress::Upgrade { .. }), "no browser");
}

#[test]
fn pages_of_the_admin_endpoint_of_this_machine_need_not_be_listed() {
    let asks = |rules: &HandshakeRules, host: &str, origin: &str| {
        let input = request("Host", &format!("Host: {host}"), &format!("Origin: {origin}\r\n"));
        matches!(upgrade_with(rules, &input), Progress::Upgrade { .. })
    };
    let listed = vec![AllowedOrigin::read("https://game.example").expect("an origin")];
    let admin_pages = AdminPages::at(([127, 0, 0, 1], 8000).into(), false);
    for origins in [Vec::new(), listed] {
        let rules = HandshakeRules { origins, admin_pages, ..rules() };
        assert!(asks(&rules, "127.0.0.1:9000", "http://127.0.0.1:8000"));
        assert!(!asks(&rules, "gate.example:9000", "http://127.0.0.1:8000"), "another machine");
        assert!(!asks(&rules, "127.0.0.1:9000", "http://evil.example:8000"), "another page");
        let without = HandshakeRules { admin_pages: None, ..rules };
        assert!(!asks(&without, "127.0.0.1:9000", "http://127.0.0.1:8000"), "off loopback");
    }
    // Off loopback such a page has a name, which is listed as any other.
    let rules = HandshakeRules {
        origins: vec![AllowedOrigin::read("https://admin.example:8000").expect("an origin")],
        admin_pages: AdminPages::at(([0, 0, 0, 0], 8000).into(), true),
        ..rules()
    };
    assert!(asks(&rules, "gate.example:9000", "https://admin.example:8000"));
    assert!(!asks(&rules, "127.0.0.1:9000", "https://127.0.0.1:8000"));
}

#[test]
fn a_page_of_a_tenant_may_connect_and_is_remembered_until_its_user_is_known() {
    let page_of = |rules: &HandshakeRules, origin: &str| match upgrade_with(
        rules,
        &with(&format!("Origin: {origin}\r\n")),
    ) {
        Progress::Upgrade { page, .. } => Some(page),
        Progress::Partial | Progress::Refuse { .. } => None,
    };
    let read = |text: &str| AllowedOrigin::read(text).expect("an origin");
    let tenant_origins = vec![read("https://acme.example"), read("https://*.beta.example")];
    for origins in [vec![], vec![read("http://gate.example:9000")]] {
        let plain = HandshakeRules { origins, ..rules() };
        let many = HandshakeRules { tenant_origins: tenant_origins.clone(), ..plain.clone() };
        for (origin, is_common) in [
            ("http://gate.example:9000", true),
            ("https://acme.example", false),
            ("https://www.beta.example", false),
        ] {
            let kept = Some(Some(PageOrigin::new(origin, is_common)));
            assert_eq!(page_of(&many, origin), kept, "{origin}");
            // Without tenants nothing is kept.
            assert_eq!(page_of(&plain, origin), is_common.then_some(None), "{origin}");
        }
        assert_eq!(page_of(&many, "https://evil.example"), None);
        let no_browser = upgrade_with(&many, &with(""));
        assert!(matches!(no_browser, Progress::Upgrade { page: None, .. }));
    }
}

/// Encoding and echoed name for a `Sec-WebSocket-Protocol` field or fields; `None` = refused.
fn negotiated(rules: &HandshakeRules, add: &str) -> Option<(Encoding, Option<String>)> {
    match upgrade_with(rules, &with(add)) {
        Progress::Upgrade { response, encoding, .. } => {
            let text = String::from_utf8(response).unwrap();
            let name = text.lines().find_map(|l| l.strip_prefix("Sec-WebSocket-Protocol: "));
            assert!(!text.contains("Extensions"));
            Some((encoding, name.map(str::to_owned)))
        }
        Progress::Refuse { status, response, .. } => {
            assert_eq!(status, 400);
            let text = String::from_utf8(response).unwrap();
            assert!(text.contains(JSON) && text.contains(PROTOBUF), "the list is in the body");
            None
        }
        Progress::Partial => panic!("complete"),
    }
}

#[test]
fn a_subprotocol_is_echoed_only_if_offered_and_spoken() {
    let rules = rules();
    let json = Some((Encoding::Json, Some(JSON.to_owned())));
    let protobuf = Some((Encoding::Protobuf, Some(PROTOBUF.to_owned())));
    let offer = |names: &str| format!("Sec-WebSocket-Protocol: {names}\r\n");
    assert_eq!(negotiated(&rules, ""), Some((Encoding::Json, None)));
    assert_eq!(negotiated(&rules, &offer(JSON)), json);
    assert_eq!(negotiated(&rules, &offer(PROTOBUF)), protobuf);
    assert_eq!(negotiated(&rules, &offer("x, shardgate.v1.protobuf,shardgate.v1.json")), protobuf);
    assert_eq!(negotiated(&rules, &(offer("x") + &offer(JSON))), json);
    assert_eq!(negotiated(&rules, &offer("mqtt, wamp")), None);
    assert_eq!(negotiated(&rules, &offer("shardgate.v1.jsonx")), None);
    assert_eq!(negotiated(&rules, &offer("SHARDGATE.V1.JSON")), None, "names have one case");
    let raw = HandshakeRules { subprotocols: false, ..rules };
    assert_eq!(negotiated(&raw, &offer("mqtt")), Some((Encoding::Json, None)));
}

#[test]
fn extensions_are_declined_and_malformed_ones_refused() {
    for (value, status) in [
        ("permessage-deflate", 101),
        ("permessage-deflate; client_max_window_bits; a=1, x-y", 101),
        ("permessage-deflate; server_max_window_bits=\"10\"", 101),
        ("permessage-deflate; server_max_window_bits=99999", 101),
        ("", 101),
        ("permessage-deflate,", 101),
        (", x", 101),
        ("a,,b", 101),
        ("permessage-deflate;", 101),
        ("permessage-deflate;; a=1 ;", 101),
        (";", 400),
        ("; a=1", 400),
        ("permessage-deflate; =1", 400),
        ("permessage-deflate; a=", 400),
        ("permessage-deflate; a=\"b", 400),
        ("permessage-deflate; a=\"b c\"", 400),
        ("a b", 400),
        ("a@b", 400),
        ("permessage-deflate; a=\"", 400),
        ("permessage-deflate; a==1", 400),
        ("permessage-deflate, a b", 400),
    ] {
        let input = with(&format!("Sec-WebSocket-Extensions: {value}\r\n"));
        assert_eq!(status_of(&input), status, "{value:?}");
        if status == 101 {
            let rules = rules();
            assert!(
                negotiated(&rules, &format!("Sec-WebSocket-Extensions: {value}\r\n")).is_some()
            );
        }
    }
}

#[test]
fn a_token_is_handed_over_and_neither_answered_nor_shown() {
    const JSON_AND: &str = "Sec-WebSocket-Protocol: shardgate.v1.json, ";
    for (lines, expected) in [
        ("authorization: Bearer a.b-_.c\r\n".to_owned(), Some("a.b-_.c")),
        ("Authorization: bearer  a.b\r\n".to_owned(), Some("a.b")),
        ("Authorization: Basic YTpi\r\n".to_owned(), None),
        ("Authorization: Bearer\r\n".to_owned(), Some("")),
        ("Authorization: bearer \r\n".to_owned(), Some("")),
        ("Authorization: Bearers a.b\r\n".to_owned(), None),
        (format!("{JSON_AND}shardgate.token.a.b-_.c\r\n"), Some("a.b-_.c")),
        (format!("{JSON_AND}shardgate.token.\r\n"), Some("")),
    ] {
        let progress = upgrade_with(&rules(), &with(&lines));
        let shown = format!("{progress:?}");
        let Progress::Upgrade { token, response, .. } = progress else {
            panic!("refused: {lines}")
        };
        assert_eq!(token.as_ref().map(ShownToken::expose), expected, "{lines}");
        assert!(!String::from_utf8(response).unwrap().contains("shardgate.token"), "{lines}");
        assert!(!shown.contains("a.b"), "{shown}");
    }
    let two = format!("Authorization: Bearer a\r\n{JSON_AND}shardgate.token.a\r\n");
    assert_eq!(status_of(&with(&two)), 400, "one token");
    let alone = "Sec-WebSocket-Protocol: shardgate.token.a\r\n";
    assert_eq!(status_of(&with(alone)), 400, "nothing to answer with");
}

#[test]
fn refusals_are_whole_responses_that_close() {
    for (status, line, field) in [
        (400, "HTTP/1.1 400 Bad Request", ""),
        (403, "HTTP/1.1 403 Forbidden", ""),
        (404, "HTTP/1.1 404 Not Found", ""),
        (405, "HTTP/1.1 405 Method Not Allowed", "Allow: GET"),
        (408, "HTTP/1.1 408 Request Timeout", ""),
        (414, "HTTP/1.1 414 URI Too Long", ""),
        (426, "HTTP/1.1 426 Upgrade Required", "Sec-WebSocket-Version: 13"),
        (426, "HTTP/1.1 426 Upgrade Required", "Upgrade: websocket"),
        (431, "HTTP/1.1 431 Request Header Fields Too Large", ""),
        (429, "HTTP/1.1 429 Too Many Requests", ""),
        (503, "HTTP/1.1 503 Service Unavailable", "Retry-After: 1"),
        (505, "HTTP/1.1 505 HTTP Version Not Supported", ""),
    ] {
        let text = String::from_utf8(refuse(status, "do this")).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let lines: Vec<_> = head.split("\r\n").collect();
        assert_eq!(lines[0], line);
        assert!(field.is_empty() || lines.contains(&field), "{text}");
        assert!(lines.contains(&"Content-Length: 8"));
        assert!(lines.iter().any(|l| l.starts_with("Connection: ") && l.ends_with("close")));
        assert_eq!(body, "do this\n");
    }
}

#[test]
fn the_time_to_come_back_is_told_in_whole_seconds_that_are_not_too_short() {
    for (ms, seconds) in [(1, "1"), (1_000, "1"), (1_001, "2"), (u32::MAX, "4294968")] {
        let text = String::from_utf8(refuse_for(429, "later", ms)).unwrap();
        assert!(text.contains(&format!("\r\nRetry-After: {seconds}\r\n")), "{text}");
    }
    assert!(!String::from_utf8(refuse_for(503, "never", 0)).unwrap().contains("Retry-After"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn noise_never_panics_and_splits_do_not_matter(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut input = with("Origin: http://gate.example:9000\r\nX-A: \"b\"\r\n");
        for (at, byte) in damage {
            let at = at.index(input.len());
            input[at] = byte;
        }
        let whole = try_upgrade(&rules(), None, &input, &mut 0);
        let mut scanned = 0;
        let first = try_upgrade(&rules(), None, &input[..cut.index(input.len())], &mut scanned);
        if first == Progress::Partial {
            prop_assert_eq!(try_upgrade(&rules(), None, &input, &mut scanned), whole);
        } else {
            prop_assert_eq!(first, whole);
        }
    }
}
