//! PROXY headers by the layout of the specification, cut at every byte, and bytes of any kind.

use proptest::prelude::*;

use super::*;

mod lines;

/// A header as a balancer writes it.
fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = (rest.len() as u16).to_be_bytes();
    [&SIGNATURE[..], &[command, family], &length, rest].concat()
}

/// 192.0.2.1:4660 to 198.51.100.2:443.
const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0x12, 0x34, 0x01, 0xbb];

/// [2001:db8::1]:4660 to [2001:db8::2]:443.
fn v6() -> Vec<u8> {
    let address = |last| [&[0x20, 0x01, 0x0d, 0xb8][..], &[0; 11], &[last]].concat();
    [&address(1)[..], &address(2), &[0x12, 0x34, 0x01, 0xbb]].concat()
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind][..], &(value.len() as u16).to_be_bytes(), value].concat()
}

/// An IPv4 header with a checksum TLV between two others.
fn with_checksum() -> Vec<u8> {
    let rest = [&V4[..], &tlv(0x05, b"id"), &tlv(TYPE_CRC32C, &[0; 4]), &tlv(0x02, b"host")];
    let mut bytes = header(0x21, 0x11, &rest.concat());
    let at = FIXED_BYTES + V4.len() + 5 + 3;
    let sum = crc32c(&bytes, at);
    bytes[at..at + 4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// Complete headers, and the clients that they name.
fn good() -> Vec<(Vec<u8>, Option<SocketAddr>)> {
    let client = Some("192.0.2.1:4660".parse().unwrap());
    let client6 = Some("[2001:db8::1]:4660".parse().unwrap());
    let mapped = [&[0; 10][..], &[0xff, 0xff, 192, 0, 2, 1], &v6()[16..]].concat();
    let noop = |bytes: &[u8], n: usize| [bytes, &tlv(0x04, &vec![0; n - 3])].concat();
    vec![
        (header(0x21, 0x11, &V4), client),
        (header(0x21, 0x21, &v6()), client6),
        (header(0x21, 0x21, &mapped), client),
        (header(0x21, 0x11, &[&V4[..], &tlv(0xee, b""), &tlv(0x01, b"h2")].concat()), client),
        (header(0x21, 0x11, &noop(&V4, PROXY_BYTES_MAX - 16 - 12)), client),
        (header(0x21, 0x21, &noop(&v6(), PROXY_BYTES_MAX - 16 - 36)), client6),
        (with_checksum(), client),
        (header(0x20, 0x00, &[]), None),
        // LOCAL: the rest of the header is ignored.
        (header(0x20, 0x11, &V4), None),
        (header(0x20, 0x31, &[7; 216]), None),
        (header(0x20, 0xff, &[1, 2, 3]), None),
        // 505 bytes of TLVs and 506: 536 bytes are no limit.
        (header(0x21, 0x11, &noop(&V4, 505)), client),
        (header(0x21, 0x11, &noop(&V4, 506)), client),
        // UNSPEC: the same.
        (header(0x21, 0x00, &[]), None),
        (header(0x21, 0x00, &[9; 20]), None),
    ]
}

#[test]
fn a_header_names_the_client_and_leaves_its_bytes() {
    for (bytes, peer) in good() {
        let expected = HeaderProgress::Header { consumed: bytes.len(), peer };
        assert_eq!(parse(&bytes), expected, "{bytes:?}");
        let followed = [&bytes[..], b"GET /ws HTTP/1.1\r\n"].concat();
        assert_eq!(parse(&followed), expected, "{bytes:?}");
    }
}

#[test]
fn a_header_cut_anywhere_is_partial() {
    for (bytes, _) in good() {
        for end in 0..bytes.len() {
            assert_eq!(parse(&bytes[..end]), HeaderProgress::Partial, "{end} of {bytes:?}");
        }
    }
}

#[test]
fn what_is_none_is_refused_with_its_reason() {
    let mut flipped = with_checksum();
    flipped[FIXED_BYTES] ^= 1;
    let two_sums = [&V4[..], &tlv(TYPE_CRC32C, &[0; 4]), &tlv(TYPE_CRC32C, &[0; 4])].concat();
    let length = |n: usize| header(0x21, 0x11, &vec![0; n]);
    let rows: Vec<(Vec<u8>, &str)> = vec![
        (b"POST /ws HTTP/1.1\r\n".to_vec(), "no PROXY protocol header"),
        (b"PROXY\t".to_vec(), "no PROXY protocol header"),
        (b"proxy TCP4".to_vec(), "no PROXY protocol header"),
        (b"GET /ws HTTP/1.1\r\n".to_vec(), "no PROXY protocol header"),
        (b"PRI * HTTP/2.0\r\n".to_vec(), "no PROXY protocol header"),
        (b"\x16\x03\x01".to_vec(), "no PROXY protocol header"),
        (b"\r\n\r\n\0\r\nQUIT\r".to_vec(), "no PROXY protocol header"),
        (header(0x11, 0x11, &V4), "version"),
        (header(0x01, 0x11, &V4), "version"),
        (header(0x22, 0x11, &V4), "command"),
        (header(0x2f, 0x11, &V4), "command"),
        (header(0x21, 0x31, &[0; 216]), "UNIX"),
        (header(0x21, 0x32, &[0; 216]), "UNIX"),
        (header(0x21, 0x12, &V4), "datagram"),
        (header(0x21, 0x22, &v6()), "datagram"),
        (header(0x21, 0x10, &V4), "family"),
        (header(0x21, 0x01, &V4), "family"),
        (header(0x21, 0x41, &V4), "family"),
        (header(0x21, 0x13, &V4), "family"),
        (header(0x21, 0x11, &V4[..11]), "too short"),
        (header(0x21, 0x11, &[]), "too short"),
        (header(0x21, 0x21, &V4), "too short"),
        (header(0x21, 0x21, &v6()[..35]), "too short"),
        (length(PROXY_BYTES_MAX - 15), "over 4096"),
        (length(65_535), "over 4096"),
        (header(0x20, 0x00, &[0; PROXY_BYTES_MAX - 15]), "over 4096"),
        (header(0x21, 0x11, &[&V4[..], &[0x04]].concat()), "cut off"),
        (header(0x21, 0x11, &[&V4[..], &[0x04, 0]].concat()), "cut off"),
        (header(0x21, 0x11, &[&V4[..], &[0x04, 0, 1]].concat()), "cut off"),
        (header(0x21, 0x11, &[&V4[..], &[0x04, 0xff, 0xff, 0]].concat()), "cut off"),
        (header(0x21, 0x11, &[&V4[..], &tlv(TYPE_CRC32C, &[0; 3])].concat()), "no 4 bytes"),
        (header(0x21, 0x11, &two_sums), "checksum is wrong"),
        (flipped, "checksum is wrong"),
    ];
    for (bytes, expected) in rows {
        match parse(&bytes) {
            HeaderProgress::Refuse { why } => assert!(why.contains(expected), "{why}: {expected}"),
            other => panic!("{bytes:?}: {other:?}, not {expected}"),
        }
    }
}

#[test]
fn a_long_one_is_refused_before_it_is_waited_for() {
    let bytes = header(0x21, 0x11, &[0; 5000]);
    assert!(
        matches!(parse(&bytes[..16]), HeaderProgress::Refuse { why } if why.contains("over 4096"))
    );
}

#[test]
fn the_checksum_is_castagnolis() {
    // RFC 3720 appendix B.4: 32 bytes of zeroes, of ones, and 0 to 31; no byte of them is left out.
    let ramp: Vec<u8> = (0..32).collect();
    for (bytes, sum) in
        [(&[0; 32][..], 0x8a91_36aau32), (&[0xff; 32], 0x62a8_ab43), (&ramp, 0x46dd_794e)]
    {
        assert_eq!(crc32c(bytes, bytes.len()), sum);
    }
    assert_eq!(crc32c(b"123456789", 9), 0xe306_9283);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_are_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let header = matches!(parse(&bytes), HeaderProgress::Header { .. });
        prop_assert!(!header);
    }

    #[test]
    fn no_rest_is_a_panic_and_nothing_beyond_the_header_is_taken(
        command in prop_oneof![Just(0x20u8), Just(0x21), any::<u8>()],
        family in prop_oneof![Just(0x11u8), Just(0x21), any::<u8>()],
        length in prop_oneof![0..600u16, 4070..4090u16, any::<u16>()],
        rest in proptest::collection::vec(any::<u8>(), 0..600),
        end in any::<prop::sample::Index>(),
    ) {
        let bytes = [&SIGNATURE[..], &[command, family], &length.to_be_bytes(), &rest].concat();
        let whole = parse(&bytes);
        if let HeaderProgress::Header { consumed, .. } = whole {
            prop_assert_eq!(consumed, FIXED_BYTES + usize::from(length));
            prop_assert!(consumed <= bytes.len() && consumed <= PROXY_BYTES_MAX);
        }
        // A shorter beginning has the same result, or is partial, or is refused as later.
        match (parse(&bytes[..end.index(bytes.len())]), whole) {
            (HeaderProgress::Partial, _) => {}
            (part, whole) => prop_assert_eq!(part, whole),
        }
    }
}
