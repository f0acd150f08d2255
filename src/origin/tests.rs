//! What may be listed, what is refused with which way out, and which pages are let in.

use std::slice;

use proptest::prelude::*;

use super::*;

fn read(text: &str) -> AllowedOrigin {
    AllowedOrigin::read(text).unwrap_or_else(|why| panic!("{text}: {why}"))
}

/// Whether a list of this one item lets the page in.
fn let_in(item: &AllowedOrigin, page: &str) -> bool {
    is_allowed(slice::from_ref(item), page)
}

/// Items of the list, pages that they let in, and pages that they do not.
const ITEMS: &[(&str, &[&str], &[&str])] = &[
    (
        "https://*.example.org",
        &[
            "https://a.example.org",
            "https://a.b.example.org",
            "HTTPS://A.Example.ORG",
            "https://x-1_y.example.org:443",
        ],
        &[
            "https://example.org",
            "http://a.example.org",
            "https://a.example.org:8443",
            "https://aexample.org",
            "https://.example.org",
            "https://a..example.org",
            "https://evil/a.example.org",
            "https://evil/.example.org",
            "https://u@a.example.org",
            "https://evil:1.example.org",
            "https://*.example.org",
            "https://a.example.org.evil",
            "https://é.example.org",
            "https://a.example.org.",
            "https://",
            "null",
            "",
        ],
    ),
    (
        "http://localhost:*",
        &["http://localhost", "http://localhost:80", "http://localhost:5173"],
        &[
            "https://localhost",
            "http://localhost:99999",
            "http://localhost:080",
            "http://localhost:+80",
            "http://localhost:*",
            "http://localhost:1:2",
            "http://localhost.evil:1",
            "http://a.localhost",
        ],
    ),
    (
        "https://*.example.org:*",
        &["https://a.example.org", "https://a.b.example.org:1"],
        &["https://example.org:1", "http://a.example.org"],
    ),
    ("http://*.localhost", &["http://a.localhost"], &["http://localhost"]),
    ("https://h:443", &["https://h", "https://h:443"], &["http://h:443", "https://h:80"]),
    ("https://h", &["https://h", "https://h:443"], &["http://h", "https://h:444"]),
    ("http://h:80", &["http://h", "http://h:80"], &["https://h", "http://h:443"]),
    ("http://h:443", &["http://h:443"], &["http://h", "https://h"]),
    ("https://h:8443", &["https://h:8443"], &["https://h", "https://h:84430"]),
    ("http://127.0.0.1:*", &["http://127.0.0.1:9"], &["http://127.0.0.2:9"]),
    ("http://[::1]:*", &["http://[::1]", "http://[::1]:9"], &["http://[::2]"]),
    ("http://[::ffff:102:304]", &["http://[::ffff:102:304]:80"], &["http://1.2.3.4"]),
    ("null", &["null"], &["", "NULL", "file://", "null://"]),
    ("file://", &["file://"], &["file:///", "file://h", "null", "http://"]),
    (
        "capacitor://localhost",
        &["capacitor://localhost"],
        &["capacitor://localhost:80", "ionic://localhost", "capacitor://localhosts"],
    ),
    ("tauri://localhost", &["tauri://localhost"], &["https://tauri.localhost"]),
    ("app://x", &["app://x"], &["app://y", "app://"]),
    ("app://.", &["app://."], &["app://"]),
    ("app://-", &["app://-"], &["app://x"]),
    ("chrome-extension://abcdef", &["chrome-extension://abcdef"], &["chrome-extension://b"]),
    ("https://xn--bcher-kva.example", &["https://xn--bcher-kva.example"], &["https://b"]),
    ("https://example.org.", &["https://example.org."], &["https://example.org"]),
];

/// Items that are refused, and a part of what is said of them.
const REFUSED: &[(&str, &str)] = &[
    ("*", "write them, e.g. \"https://*.example.org\""),
    ("", "must be scheme://host[:port]"),
    ("example.org", "must be scheme://host[:port]"),
    ("localhost:3000", "must be scheme://host[:port]"),
    ("https:/example.org", "must be scheme://host[:port]"),
    ("https://A.example", "write \"https://a.example\""),
    ("HTTPS://a.example", "write \"https://a.example\""),
    ("NULL", "write \"null\""),
    ("https://example.org/", "write \"https://example.org\""),
    ("https://example.org/game", "write \"https://example.org\""),
    ("https://example.org?x", "write \"https://example.org\""),
    ("https://example.org#x", "write \"https://example.org\""),
    ("https://u:p@example.org", "write \"https://example.org\""),
    ("https://u@example.org/@x", "write \"https://example.org\""),
    ("file:///", "write \"file://\""),
    ("file://host", "must be \"file://\" or \"null\""),
    ("https://", "must name a host: write \"https://example.org\""),
    (" https://a.example", "remove ' '"),
    ("https://a.example https://b.example", "remove ' '"),
    ("https://a.example,https://b.example", "another item"),
    ("https://a.example,b.example", "another item"),
    ("https://bücher.example", "its xn--"),
    ("https://%61.example", "remove '%'"),
    ("wss://a.example", "write https://"),
    ("ws://a.example", "write http://"),
    ("*://a.example", "one for https://"),
    ("http*://a.example", "one for https://"),
    ("blob:https://a.example", "must begin with a scheme"),
    ("://a.example", "must begin with a scheme"),
    ("https://*", "whole labels"),
    ("https://*:8443", "whole labels"),
    ("https://*example.org", "whole labels"),
    ("https://a.*.org", "whole labels"),
    ("https://*.*.org", "whole labels"),
    ("app://*", "whole labels"),
    ("https://*.com", "write e.g. \"https://*.example.com\""),
    ("https://*.", "1 to 63"),
    ("https://.example.org", "1 to 63"),
    ("https://a..example", "1 to 63"),
    ("https://h:", "from 1 to 65535"),
    ("https://h:0", "from 1 to 65535"),
    ("https://h:0443", "leading zeros"),
    ("https://h:65536", "from 1 to 65535"),
    ("https://h:x", "from 1 to 65535"),
    ("https://h:8*", "from 1 to 65535"),
    ("https://h:1:2", "remove ':'"),
    ("http://127.1", "whole IPv4 address"),
    ("http://0x7f", "whole IPv4 address"),
    ("http://1.2.3.256", "whole IPv4 address"),
    ("http://*.0.0.1", "whole IPv4 address"),
    ("http://*.10.0.0.1", "whole IPv4 address"),
    ("http://::1", "remove ':'"),
    ("http://[::1", "remove '['"),
    ("http://[x]", "IPv6 address between"),
    ("http://*.[::1]", "remove '['"),
    ("http://[0:0:0:0:0:0:0:1]", "write \"http://[::1]\""),
    ("http://[::ffff:1.2.3.4]", "write \"http://[::ffff:102:304]\""),
];

#[test]
fn an_item_lets_in_its_pages_and_no_others() {
    for (item, pages, others) in ITEMS {
        let allowed = read(item);
        pages.iter().for_each(|page| assert!(let_in(&allowed, page), "{item}: {page}"));
        others.iter().for_each(|page| assert!(!let_in(&allowed, page), "{item}: {page}"));
    }
}

#[test]
fn what_can_match_no_browser_or_everything_is_refused_with_the_way_out() {
    let long = format!("https://{}.example", "a".repeat(64));
    for (item, expected) in REFUSED.iter().chain(&[(&*long, "1 to 63")]) {
        match AllowedOrigin::read(item) {
            Err(why) => assert!(
                why.starts_with("must") | why.starts_with("a '*' must") && why.contains(expected),
                "{item}: {why}"
            ),
            Ok(origin) => panic!("{item} is {origin:?}"),
        }
    }
}

/// The rule for `https://*.<zone>` said once more, by splitting and owning.
fn naive_is_under(origin: &str, zone: &str) -> bool {
    let lower = origin.to_ascii_lowercase();
    let Some(host) = lower.strip_prefix("https://") else { return false };
    let host = host.strip_suffix(":443").unwrap_or(host);
    let labels: Vec<&str> = host.split('.').collect();
    let own: Vec<&str> = zone.split('.').collect();
    let is_label = |label: &&str| {
        !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
    };
    labels.len() > own.len() && labels.ends_with(&own) && labels.iter().all(is_label)
}

#[test]
fn a_page_that_only_another_tenant_lists_signs_in_nobody_else() {
    let (own, none) = ([read("https://*.acme.example")], []);
    let of_acme = PageOrigin::new("https://www.acme.example", false);
    assert!(of_acme.may_sign_in(&own) && !of_acme.may_sign_in(&none));
    let common = PageOrigin::new("https://www.example", true);
    assert!(common.may_sign_in(&none) && !common.may_sign_in(&own));
    // Of an origin that is cut no part is looked at.
    let cut = format!("https://{}.acme.example.evil.example", "a".repeat(PAGE_BYTES_MAX));
    assert!(!PageOrigin::new(&cut, false).may_sign_in(&own));
    let kept = PageOrigin::new(&cut, true);
    assert_eq!((kept.text(), kept.may_sign_in(&none)), ("", true));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_wildcard_is_labels_in_front_of_the_zone(
        origin in "(https://|http://|HTTPS://)?[a-bA-B.@/:é-]{0,6}(\\.|x)?b\\.a(:443|:44|\\.)?",
    ) {
        let allowed = read("https://*.b.a");
        prop_assert_eq!(let_in(&allowed, &origin), naive_is_under(&origin, "b.a"), "{}", origin);
    }

    #[test]
    fn what_is_read_is_shown_as_it_matches(
        item in "(https|http|app)://(\\*\\.)?[a-z]{1,3}\\.[a-z]{1,3}(:\\*|:80|:443|:9)?",
        port in prop_oneof![Just(""), Just(":80"), Just(":443"), Just(":9")],
    ) {
        let allowed = read(&item);
        let shown = allowed.to_string();
        prop_assert_eq!(&read(&shown), &allowed);
        let page = item.replace("*.", "a.").split(":*").next().unwrap_or_default().to_owned();
        prop_assert!(let_in(&allowed, &page), "{} {}", item, page);
        let host = page.rsplit_once(':').filter(|(h, _)| h.contains("://")).map_or(&*page, |p| p.0);
        let other = format!("{host}{port}");
        // Default ports are none; any other one is told apart.
        let same = port_of(host.split(':').next().unwrap_or_default(), port.strip_prefix(':'));
        let expected = match &allowed {
            AllowedOrigin::Null => false,
            AllowedOrigin::Pages { port: AllowedPort::Any, .. } => true,
            AllowedOrigin::Pages { port: AllowedPort::Is(port), .. } => same == Some(*port),
        };
        prop_assert_eq!(let_in(&allowed, &other), expected, "{} {}", item, other);
    }

    #[test]
    fn no_text_is_a_panic(text in "\\PC{0,40}", origin in "\\PC{0,40}") {
        if let Ok(allowed) = AllowedOrigin::read(&text) {
            let_in(&allowed, &origin);
        }
        is_of_host(&origin, &text);
    }
}

/// A row: where the admin endpoint listens and whether with TLS, the host that a page connects to,
/// its origin, and whether it is let in.
type AdminPage = (&'static str, bool, &'static str, &'static str, bool);

const ADMIN_PAGES: &[AdminPage] = &[
    ("127.0.0.1:8000", false, "127.0.0.1:9000", "http://127.0.0.1:8000", true),
    ("127.0.0.1:8000", false, "127.0.0.1:9000", "http://localhost:8000", true),
    ("127.0.0.1:8000", false, "localhost:9000", "HTTP://LocalHost:8000", true),
    ("127.0.0.1:8000", false, "[::1]:9000", "http://127.0.0.1:8000", true),
    ("127.0.0.1:80", false, "127.0.0.1", "http://127.0.0.1", true),
    ("127.0.0.1:443", true, "localhost", "https://localhost", true),
    ("127.0.0.1:8000", true, "localhost:9443", "https://localhost:8000", true),
    ("[::1]:8000", false, "[::1]:9000", "http://[::1]:8000", true),
    // A page of another port, scheme or address.
    ("127.0.0.1:8000", false, "127.0.0.1:9000", "http://127.0.0.1:8001", false),
    ("127.0.0.1:8000", false, "127.0.0.1:9000", "http://127.0.0.1", false),
    ("127.0.0.1:8000", false, "127.0.0.1:9000", "https://127.0.0.1:8000", false),
    ("127.0.0.1:8000", true, "127.0.0.1:9000", "http://127.0.0.1:8000", false),
    ("127.0.0.1:8000", false, "127.0.0.1:9000", "ws://127.0.0.1:8000", false),
    ("127.0.0.1:8000", false, "127.0.0.1:9000", "http://127.0.0.2:8000", false),
    ("127.0.0.1:8000", false, "127.0.0.1:9000", "http://[::1]:8000", false),
    // Names to which anybody can give a loopback address: of the page, of the gateway, of both.
    ("127.0.0.1:8000", false, "127.0.0.1:9000", "http://evil.example:8000", false),
    ("127.0.0.1:8000", false, "evil.example:9000", "http://evil.example:8000", false),
    ("127.0.0.1:8000", false, "evil.example:9000", "http://127.0.0.1:8000", false),
    ("127.0.0.1:8000", false, "127.0.0.1:9000", "http://localhost.evil.example:8000", false),
    ("127.0.0.1:8000", false, "127.0.0.1:9000", "http://127.0.0.1.evil.example:8000", false),
    ("127.0.0.1:8000", false, "localhost.:9000", "http://localhost.:8000", false),
    // A page on the reader's machine, and a gateway on another one.
    ("127.0.0.1:8000", false, "192.0.2.1:9000", "http://127.0.0.1:8000", false),
    ("127.0.0.1:8000", false, "gate.example:9000", "http://localhost:8000", false),
    // No origin of a page, and no host.
    ("127.0.0.1:8000", false, "127.0.0.1:9000", "null", false),
    ("127.0.0.1:8000", false, "127.0.0.1:9000", "http://x@127.0.0.1:8000", false),
    ("127.0.0.1:8000", false, "127.0.0.1:9000", "http://127.0.0.1:8000/", false),
    ("127.0.0.1:8000", false, "x@127.0.0.1:9000", "http://127.0.0.1:8000", false),
    // Other hosts reach the endpoint: its pages are listed.
    ("0.0.0.0:8000", true, "127.0.0.1:9000", "https://127.0.0.1:8000", false),
    ("[::]:8000", true, "localhost:9000", "https://localhost:8000", false),
    ("192.0.2.1:8000", true, "192.0.2.1:9000", "https://192.0.2.1:8000", false),
];

#[test]
fn pages_of_an_admin_endpoint_on_loopback_are_let_in_from_the_machine_itself() {
    for (listen, tls, host, origin, ok) in ADMIN_PAGES {
        let pages = AdminPages::at(listen.parse().expect("an address"), *tls);
        let allows = pages.is_some_and(|pages| pages.allows(origin, host));
        assert_eq!(allows, *ok, "{listen} {tls} {host} {origin}");
    }
}
