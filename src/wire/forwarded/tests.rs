//! Lists as proxies write them, as clients forge them, and bytes of any kind.

use proptest::prelude::*;

use super::*;
use crate::peers::Peers;

fn rules(header: ForwardedHeader) -> Forwarded {
    let from = ["10.0.0.0/8", "fd00::/8"].map(|text| text.parse().expect("a network"));
    Forwarded { from: Peers::new(from.into()), header }
}

fn told(header: ForwardedHeader, values: &[&[u8]]) -> Told {
    read(&rules(header), values.iter().copied())
}

fn client(text: &str) -> Told {
    Told::Client(text.parse().expect("an address"))
}

/// What `Unclear` says: the hop before, and why.
fn unclear(told: &Told) -> Option<(Option<String>, &'static str)> {
    match told {
        Told::Client(_) | Told::Nothing => None,
        Told::Unclear { nearest, why, .. } => {
            Some((nearest.as_ref().map(ToString::to_string), why))
        }
    }
}

#[test]
fn the_right_most_address_that_is_not_listed_is_the_client() {
    // Values of the field, in their order; the client.
    let rows: &[(&[&str], &str)] = &[
        (&["192.0.2.7"], "192.0.2.7:0"),
        (&["  192.0.2.7\t"], "192.0.2.7:0"),
        (&["198.51.100.1, 192.0.2.7"], "192.0.2.7:0"),
        (&["198.51.100.1,192.0.2.7,10.0.0.2 , 10.0.0.1"], "192.0.2.7:0"),
        // Several fields are one list.
        (&["198.51.100.1", "192.0.2.7"], "192.0.2.7:0"),
        (&["192.0.2.7", "10.0.0.2", "10.0.0.1, fd00::1"], "192.0.2.7:0"),
        (&["192.0.2.7, 10.0.0.2", ""], "192.0.2.7:0"),
        (&["192.0.2.7, ,, 10.0.0.2,"], "192.0.2.7:0"),
        // With ports, as Azure's gateway writes them.
        (&["192.0.2.7:567"], "192.0.2.7:567"),
        (&["192.0.2.7:567, 10.0.0.2:80"], "192.0.2.7:567"),
        (&["192.0.2.7:0"], "192.0.2.7:0"),
        (&["2001:db8::7"], "[2001:db8::7]:0"),
        (&["[2001:db8::7]"], "[2001:db8::7]:0"),
        (&["[2001:db8::7]:567"], "[2001:db8::7]:567"),
        (&["2001:DB8:0:0:0:0:0:7, [fd00::1]:1"], "[2001:db8::7]:0"),
        // Go writes the zone.
        (&["fe80::1%eth0"], "[fe80::1]:0"),
        (&["[fe80::1%eth0]:567"], "[fe80::1]:567"),
        // One client and one proxy, however they are written.
        (&["::ffff:192.0.2.7"], "192.0.2.7:0"),
        (&["[::ffff:192.0.2.7]:567, ::ffff:10.0.0.1"], "192.0.2.7:567"),
        // All are listed: a client of one's own network.
        (&["10.0.0.3:9, 10.0.0.2, 10.0.0.1"], "10.0.0.3:9"),
        // What is left of the client may be anything.
        (&["garbage, 192.0.2.7"], "192.0.2.7:0"),
        (&["\"", "192.0.2.7, 10.0.0.1"], "192.0.2.7:0"),
        (&["\", 192.0.2.7"], "192.0.2.7:0"),
        (&["10.0.0.1, unknown, 192.0.2.7"], "192.0.2.7:0"),
    ];
    for (values, expected) in rows {
        let values: Vec<&[u8]> = values.iter().map(|value| value.as_bytes()).collect();
        assert_eq!(told(ForwardedHeader::XForwardedFor, &values), client(expected), "{values:?}");
    }
}

#[test]
fn forwarded_is_read_as_rfc_7239_writes_it() {
    let rows: &[(&[&str], &str)] = &[
        (&["for=192.0.2.7"], "192.0.2.7:0"),
        (&["For=\"[2001:db8::7]:4711\""], "[2001:db8::7]:4711"),
        (&["for=192.0.2.7;proto=http;by=203.0.113.43"], "192.0.2.7:0"),
        (&["proto=https; host=\"a,b;for=1.1.1.1\" ;\tFOR = \"192.0.2.7:80\""], "192.0.2.7:80"),
        (&["for=192.0.2.43, for=192.0.2.7"], "192.0.2.7:0"),
        (&["for=192.0.2.7, for=10.0.0.1;by=10.0.0.2", "for=\"10.0.0.2\""], "192.0.2.7:0"),
        (&["for=192.0.2.7, for=\"[fd00::1]\""], "192.0.2.7:0"),
        // A port may be hidden, and quoted characters escaped.
        (&["for=\"192.0.2.7:_http\""], "192.0.2.7:0"),
        (&["for=\"1\\92.0.2.7\""], "192.0.2.7:0"),
        (&["for=192.0.2.7;host=\"a\\\", for=1.1.1.1\""], "192.0.2.7:0"),
        (&["for=192.0.2.7;host=\"a\\\\\""], "192.0.2.7:0"),
        // Against the RFC, but clear.
        (&["for=192.0.2.7:80"], "192.0.2.7:80"),
        (&["for=2001:db8::7"], "[2001:db8::7]:0"),
        (&["for=[2001:db8::7]:1"], "[2001:db8::7]:1"),
        (&["for=192.0.2.7;"], "192.0.2.7:0"),
        (&["for=192.0.2.7;secret"], "192.0.2.7:0"),
        // What is left of the client may be anything, a string without an end as well.
        (&["for=\"1.1.1.1, for=192.0.2.7"], "192.0.2.7:0"),
        (&["for=\"1.1.1.1", "for=\"192.0.2.7\""], "192.0.2.7:0"),
        (&["a=\"\\\", for=192.0.2.7;by=\"x\", for=10.0.0.1"], "192.0.2.7:0"),
        (&["for=unknown, for=_hidden, for=192.0.2.7, for=10.0.0.1"], "192.0.2.7:0"),
        (&["for=10.0.0.3, for=10.0.0.1"], "10.0.0.3:0"),
    ];
    for (values, expected) in rows {
        let values: Vec<&[u8]> = values.iter().map(|value| value.as_bytes()).collect();
        assert_eq!(told(ForwardedHeader::Forwarded, &values), client(expected), "{values:?}");
    }
}

#[test]
fn no_field_and_an_empty_one_name_nobody() {
    for header in [ForwardedHeader::XForwardedFor, ForwardedHeader::Forwarded] {
        for values in [&[][..], &[&b""[..]], &[b" , ,", b"\t"]] {
            assert_eq!(told(header, values), Told::Nothing, "{values:?}");
        }
    }
}

#[test]
fn an_entry_that_decides_and_is_no_address_ends_at_the_hop_before_it() {
    const NO_ADDRESS: &str = "names no IP address";
    const HIDDEN: &str = "hides the address";
    use ForwardedHeader::{Forwarded as Rfc, XForwardedFor as Xff};
    let rows = [
        (Xff, "localhost", None, NO_ADDRESS),
        (Xff, "192.0.2.7, unknown", None, HIDDEN),
        (Xff, "192.0.2.7, Unknown, 10.0.0.2, 10.0.0.1", Some("10.0.0.2:0"), HIDDEN),
        (Xff, "192.0.2.7, _gazonk, 10.0.0.1:5", Some("10.0.0.1:5"), HIDDEN),
        (Xff, "192.0.2.07", None, NO_ADDRESS),
        (Xff, "192.0.2", None, NO_ADDRESS),
        (Xff, "192.0.2.7 10.0.0.1", None, NO_ADDRESS),
        (Xff, "192.0.2.7:", None, NO_ADDRESS),
        (Xff, "192.0.2.7:x", None, NO_ADDRESS),
        (Xff, "192.0.2.7:+1", None, NO_ADDRESS),
        (Xff, "192.0.2.7:65536", None, NO_ADDRESS),
        (Xff, "[192.0.2.7]", None, NO_ADDRESS),
        (Xff, "[2001:db8::7", None, NO_ADDRESS),
        (Xff, "[2001:db8::7]x", None, NO_ADDRESS),
        (Xff, "[]:1", None, NO_ADDRESS),
        (Xff, "192.0.2.7/32", None, NO_ADDRESS),
        (Xff, "\"192.0.2.7\"", None, NO_ADDRESS),
        (Xff, "for=192.0.2.7", None, NO_ADDRESS),
        (Rfc, "192.0.2.7", None, "has no for="),
        (Rfc, "by=192.0.2.7;proto=http, for=10.0.0.1", Some("10.0.0.1:0"), "has no for="),
        (Rfc, "for=192.0.2.7;for=192.0.2.8", None, "has for= twice"),
        (Rfc, "for=", None, NO_ADDRESS),
        (Rfc, "for=\"", None, NO_ADDRESS),
        (Rfc, "for=\"\"", None, NO_ADDRESS),
        (Rfc, "for=unknown", None, HIDDEN),
        (Rfc, "for=\"_hidden\"", None, HIDDEN),
        (Rfc, "for=\"192.0.2.7\" x", None, NO_ADDRESS),
    ];
    for (header, value, nearest, why) in rows {
        let told = told(header, &[value.as_bytes()]);
        let nearest = nearest.map(str::to_owned);
        assert_eq!(unclear(&told), Some((nearest, why)), "{value}: {told:?}");
    }
    let long = [b'\xff'; 4_000];
    match told(Xff, &[&long]) {
        Told::Unclear { entry, .. } => assert_eq!(entry, "\u{fffd}".repeat(60)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_list_of_thousands_of_proxies_is_read_up_to_a_bound() {
    let list = |hops: usize| format!("192.0.2.7{}", ", 10.0.0.1:9".repeat(hops));
    let of = |hops| told(ForwardedHeader::XForwardedFor, &[list(hops).as_bytes()]);
    assert_eq!(of(31), client("192.0.2.7:0"));
    let nearest = Some("10.0.0.1:9".to_owned());
    for hops in [32, 33, 2_000] {
        assert_eq!(
            unclear(&of(hops)),
            Some((nearest.clone(), "has more than 32 proxies behind it"))
        );
    }
}

/// An address, and how proxies write it in either header.
fn address() -> impl Strategy<Value = (IpAddr, String)> {
    let v4 = any::<[u8; 4]>().prop_map(IpAddr::from);
    let v6 = any::<[u8; 16]>().prop_map(IpAddr::from);
    (prop_oneof![v4, v6], any::<Option<u16>>()).prop_map(|(ip, port)| {
        let text = match (ip, port) {
            (_, Some(port)) => SocketAddr::new(ip, port).to_string(),
            (IpAddr::V4(ip), None) => ip.to_string(),
            (IpAddr::V6(ip), None) => format!("[{ip}]"),
        };
        (ip.to_canonical(), text)
    })
}

proptest! {
    #[test]
    fn nothing_left_of_the_client_matters(
        before in prop::collection::vec(any::<u8>(), 0..64),
        (ip, text) in address(),
        proxies in prop::collection::vec("(10\\.0\\.[0-9]\\.1(:80)?|\\[fd00::[0-9]\\])", 0..4),
        fields in any::<bool>(),
    ) {
        for header in [ForwardedHeader::XForwardedFor, ForwardedHeader::Forwarded] {
            let wrap = |text: &String| match header {
                ForwardedHeader::XForwardedFor => text.clone(),
                ForwardedHeader::Forwarded => format!("proto=http;for=\"{text}\";host=\"a;b,c\""),
            };
            prop_assume!(!rules(header).from.has(ip));
            let hops: Vec<String> = std::iter::once(&text).chain(&proxies).map(wrap).collect();
            let hops = hops.join(", ");
            let one = [&before[..], b",", hops.as_bytes()].concat();
            let found = match fields {
                true => told(header, &[&before, hops.as_bytes()]),
                false => told(header, &[&one]),
            };
            match found {
                Told::Client(client) => prop_assert_eq!(client.ip(), ip),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(
        values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..4),
        text in prop::collection::vec("[fFor=\"\\\\;,:.\\[\\]%_0-9a-f ]{0,40}", 0..3),
    ) {
        let values: Vec<&[u8]> =
            values.iter().map(Vec::as_slice).chain(text.iter().map(String::as_bytes)).collect();
        for header in [ForwardedHeader::XForwardedFor, ForwardedHeader::Forwarded] {
            told(header, &values);
        }
    }
}
