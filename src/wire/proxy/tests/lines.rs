//! Lines of version 1: those of balancers, cut anywhere, and any bytes against a naive reading.

use proptest::prelude::*;

use super::super::line::LINE_BYTES_MAX;
use super::*;

/// The longest line, which section 2.1 counts: 107 bytes.
const LONGEST: &str = "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff \
                       ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";

fn good_lines() -> Vec<(&'static str, Option<SocketAddr>)> {
    let client = |text: &str| Some(text.parse().unwrap());
    vec![
        ("PROXY TCP4 192.0.2.1 198.51.100.2 4660 443\r\n", client("192.0.2.1:4660")),
        ("PROXY TCP4 255.255.255.255 0.0.0.0 65535 0\r\n", client("255.255.255.255:65535")),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 0 1\r\n", client("192.0.2.1:0")),
        ("PROXY TCP6 2001:db8::1 2001:DB8::2 4660 443\r\n", client("[2001:db8::1]:4660")),
        ("PROXY TCP6 ::ffff:192.0.2.1 ::1 4660 443\r\n", client("192.0.2.1:4660")),
        ("PROXY UNKNOWN\r\n", None),
        ("PROXY UNKNOWN \r\n", None),
        ("PROXY UNKNOWN any\nthing \r it likes\r\n", None),
        (LONGEST, None),
    ]
}

#[test]
fn a_line_names_the_client_and_leaves_its_bytes() {
    assert_eq!(LONGEST.len(), LINE_BYTES_MAX);
    for (line, peer) in good_lines() {
        let expected = HeaderProgress::Header { consumed: line.len(), peer };
        assert_eq!(parse(line.as_bytes()), expected, "{line}");
        for rest in ["GET /ws HTTP/1.1\r\n", "\x16\x03\x01", "\r\n", "\0"] {
            assert_eq!(parse(format!("{line}{rest}").as_bytes()), expected, "{line}");
        }
    }
}

#[test]
fn a_line_cut_anywhere_is_partial() {
    for (line, _) in good_lines() {
        for end in 0..line.len() {
            let part = &line.as_bytes()[..end];
            assert_eq!(parse(part), HeaderProgress::Partial, "{end} of {line}");
        }
    }
}

#[test]
fn a_line_that_is_none_is_refused_with_its_reason() {
    let unending = format!("PROXY UNKNOWN {}", "x".repeat(200));
    let long = format!("PROXY TCP4 {}\r\n", "1".repeat(200));
    let late = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LINE_BYTES_MAX - 15));
    let rows = [
        ("PROXY \r\n", "neither TCP4"),
        ("PROXY  TCP4", "neither TCP4"),
        ("PROXY TCP5 ", "neither TCP4"),
        ("PROXY UDP4 ", "neither TCP4"),
        ("PROXY tcp4 ", "neither TCP4"),
        ("PROXY TCP4\r\n", "neither TCP4"),
        ("PROXY UNKNOWNX", "neither TCP4"),
        ("PROXY UNKNOWN\n", "neither TCP4"),
        ("PROXY TCP4 \r\n", "two addresses"),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 4660\r\n", "two addresses"),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 4660 443 1\r\n", "two addresses"),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 4660 443 \r\n", "two addresses"),
        ("PROXY TCP4 192.0.2.1  198.51.100.2 4660\r\n", "address"),
        ("PROXY TCP4 192.0.2.256 198.51.100.2 4660 443\r\n", "its family"),
        ("PROXY TCP4 192.0.2.01 198.51.100.2 4660 443\r\n", "its family"),
        ("PROXY TCP4 192.0.2.1 ::1 4660 443\r\n", "its family"),
        ("PROXY TCP4 ::1 ::1 4660 443\r\n", "its family"),
        ("PROXY TCP6 192.0.2.1 198.51.100.2 4660 443\r\n", "its family"),
        ("PROXY TCP6 fe80::1%eth0 ::1 4660 443\r\n", "its family"),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n", "0 to 65535"),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 4660 0443\r\n", "0 to 65535"),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 +1 443\r\n", "0 to 65535"),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 -1 443\r\n", "0 to 65535"),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 0x1 443\r\n", "0 to 65535"),
        ("PROXY TCP4 192.0.2.1 198.51.100.2  443\r\n", "0 to 65535"),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 4660 443\n", "no text"),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 4660 443\rG", "no text"),
        ("PROXY TCP4 192.0.2.1\t198.51.100.2 4660 443\r\n", "no text"),
        ("PROXY TCP4 é", "no text"),
        (&unending, "107 bytes"),
        (&long, "107 bytes"),
        (&late, "107 bytes"),
    ];
    for (bytes, expected) in rows {
        match parse(bytes.as_bytes()) {
            HeaderProgress::Refuse { why } => assert!(why.contains(expected), "{why}: {expected}"),
            other => panic!("{bytes:?}: {other:?}, not {expected}"),
        }
    }
}

/// What a reader finds that waits for the end of a line and looks only then.
fn naive(bytes: &[u8]) -> Option<(usize, Option<SocketAddr>)> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n").filter(|&at| at + 2 <= 107)?;
    let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
    if text == "PROXY UNKNOWN" || text.starts_with("PROXY UNKNOWN ") {
        return Some((end + 2, None));
    }
    let fields: Vec<&str> = text.split(' ').collect();
    let ["PROXY", family, source, destination, port, other] = fields[..] else { return None };
    let number = |text: &str| text.parse::<u16>().ok().filter(|n| n.to_string() == text);
    number(other)?;
    let ip: IpAddr = source.parse().ok()?;
    let to: IpAddr = destination.parse().ok()?;
    let right = match family {
        "TCP4" => ip.is_ipv4() && to.is_ipv4(),
        "TCP6" => ip.is_ipv6() && to.is_ipv6(),
        _ => false,
    };
    right.then_some((end + 2, Some(SocketAddr::new(ip.to_canonical(), number(port)?))))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_line_is_read_as_a_naive_reader_does_and_any_beginning_agrees(
        line in "PROXY (TCP4|TCP6|UNKNOWN|TCP) ?(192\\.0\\.2\\.[0-9]{1,3}|::[a-f0-9]{0,5}|x{0,99}) \
                 ?(1\\.2\\.3\\.4|::1) [0-9]{1,6} [0-9]{1,5} ?",
        end in "(\r\n|\n|\r|)",
        rest in proptest::collection::vec(any::<u8>(), 0..40),
        changed in proptest::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let mut bytes = [line.as_bytes(), end.as_bytes(), &rest].concat();
        if let Some((at, byte)) = changed {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let whole = parse(&bytes);
        let found = match whole {
            HeaderProgress::Header { consumed, peer } => Some((consumed, peer)),
            HeaderProgress::Partial | HeaderProgress::Refuse { .. } => None,
        };
        prop_assert_eq!(found, naive(&bytes), "{:?}", String::from_utf8_lossy(&bytes));
        for end in 0..bytes.len() {
            match parse(&bytes[..end]) {
                HeaderProgress::Partial => prop_assert!(end < LINE_BYTES_MAX),
                part => prop_assert_eq!(part, whole),
            }
        }
    }
}
