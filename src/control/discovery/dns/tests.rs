//! DNS as a source, against a name server of the tests that can misbehave.

use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;

use super::*;

/// Answer of the name server.
#[derive(Clone)]
enum Say {
    /// Addresses, with this time to live.
    Has(Vec<IpAddr>, u32),
    /// The same as `Has`, but cut over UDP.
    HasOverTcp(Vec<IpAddr>, u32),
    /// A response code, RFC 1035 section 4.1.1.
    Code(u8),
    /// The AAAA question fails, the other is answered.
    HalfHas(Vec<IpAddr>, u32),
    Nothing,
    Garbage,
}

const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;

struct Server {
    address: SocketAddr,
    say: Arc<Mutex<Say>>,
}

impl Server {
    async fn start(say: Say) -> Self {
        let say = Arc::new(Mutex::new(say));
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            // The same port may be taken for TCP.
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let (over_udp, over_tcp) = (say.clone(), say.clone());
        tokio::spawn(async move {
            let mut question = [0; 512];
            loop {
                let (n, peer) = udp.recv_from(&mut question).await.unwrap();
                let said = answer(&question[..n], &over_udp.lock().unwrap().clone(), false);
                if let Some(said) = said {
                    udp.send_to(&said, peer).await.unwrap();
                }
            }
        });
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let say = over_tcp.clone();
                tokio::spawn(async move {
                    // RFC 1035 section 4.2.2: two bytes of length before each message.
                    while let Ok(n) = stream.read_u16().await {
                        let mut question = vec![0; n.into()];
                        stream.read_exact(&mut question).await.unwrap();
                        let say = say.lock().unwrap().clone();
                        if let Some(said) = answer(&question, &say, true) {
                            stream.write_u16(said.len() as u16).await.unwrap();
                            stream.write_all(&said).await.unwrap();
                        }
                    }
                });
            }
        });
        Self { address, say }
    }

    fn say(&self, say: Say) {
        *self.say.lock().unwrap() = say;
    }

    fn asker(&self) -> HostResolver {
        let timeout = Duration::from_millis(100);
        HostResolver { host: "logic.test".into(), servers: [self.address].into(), timeout }
    }
}

/// RFC 1035 section 4.1, byte by byte.
fn answer(question: &[u8], say: &Say, over_tcp: bool) -> Option<Vec<u8>> {
    let name_end = 12 + question[12..].iter().position(|b| *b == 0).unwrap() + 1;
    let kind = u16::from_be_bytes([question[name_end], question[name_end + 1]]);
    const A: u16 = 1;
    const AAAA: u16 = 28;
    let (ips, ttl, code, cut) = match say {
        Say::Has(ips, ttl) => (&ips[..], *ttl, 0, false),
        Say::HasOverTcp(ips, ttl) => (&ips[..], *ttl, 0, !over_tcp),
        Say::HalfHas(_, _) if kind == AAAA => (&[][..], 0, SERVFAIL, false),
        Say::HalfHas(ips, ttl) => (&ips[..], *ttl, 0, false),
        Say::Code(code) => (&[][..], 0, *code, false),
        Say::Nothing => return None,
        Say::Garbage => return Some(b"\xff\x00garbage".to_vec()),
    };
    let ips: Vec<IpAddr> = ips
        .iter()
        .filter(|ip| if ip.is_ipv4() { kind == A } else { kind == AAAA })
        .filter(|_| !cut)
        .copied()
        .collect();
    let mut said = question[..2].to_vec();
    said.extend([0x81 | u8::from(cut) << 1, 0x80 | code, 0, 1]);
    said.extend((ips.len() as u16).to_be_bytes());
    said.extend([0; 4]);
    said.extend(&question[12..name_end + 4]);
    for ip in ips {
        let data = match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        // The name as a pointer to the question's, class IN.
        said.extend([0xc0, 12]);
        said.extend(kind.to_be_bytes());
        said.extend([0, 1]);
        said.extend(ttl.to_be_bytes());
        said.extend((data.len() as u16).to_be_bytes());
        said.extend(data);
    }
    Some(said)
}

fn ips(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|ip| ip.parse().unwrap()).collect()
}

fn has(list: &[&str]) -> RecordAnswer {
    RecordAnswer::Has(ips(list).into_iter().collect())
}

fn records() -> HostRecords {
    HostRecords::new("logic".into(), 7, Backoff::new(RETRY_FIRST, 1))
}

/// Addresses in an event with contents.
fn known(event: &SourceEvent) -> Vec<String> {
    let SourceEvent::Contents { contents, .. } = event else { panic!("{event:?}") };
    contents.instances.iter().map(|i| i.address.to_string()).collect()
}

const TTL: Duration = Duration::from_secs(9);
const NONE: RecordAnswer = RecordAnswer::Empty("no address");

#[tokio::test]
async fn a_and_aaaa_are_found_with_their_time_to_live() {
    let server = Server::start(Say::Has(ips(&["10.0.0.2", "10.0.0.1", "fd00::7"]), 77)).await;
    let (answers, ttl) = server.asker().ask().await;
    assert_eq!(answers, [has(&["10.0.0.1", "10.0.0.2"]), has(&["fd00::7"])]);
    assert!((76..=77).contains(&ttl.as_secs()), "{ttl:?}");
    server.say(Say::Has(ips(&["10.0.0.1"]), 0));
    assert_eq!(server.asker().ask().await, ([has(&["10.0.0.1"]), NONE], TTL_MIN));
    server.say(Say::Has(ips(&["10.0.0.1"]), 86_400));
    assert_eq!(server.asker().ask().await.1, TTL_MAX);
}

#[tokio::test]
async fn an_answer_that_was_cut_is_asked_for_over_tcp() {
    let many: Vec<IpAddr> = (0..100).map(|n| IpAddr::from([10, 0, 0, n])).collect();
    let server = Server::start(Say::HasOverTcp(many.clone(), 5)).await;
    let ([v4, v6], _) = server.asker().ask().await;
    assert_eq!((v4, v6), (RecordAnswer::Has(many.into_iter().collect()), NONE));
}

#[tokio::test]
async fn what_is_wrong_is_told_apart() {
    let server = Server::start(Say::Code(SERVFAIL)).await;
    let failed = |answers: &[RecordAnswer; 2], text: &str| {
        let said = |a: &RecordAnswer| matches!(a, RecordAnswer::Failed(why) if why.contains(text));
        assert!(answers.iter().all(said), "{answers:?}");
    };
    failed(&server.asker().ask().await.0, "Server Failure");
    server.say(Say::Code(NXDOMAIN));
    let unknown = RecordAnswer::Empty("NXDOMAIN");
    assert_eq!(server.asker().ask().await.0, [unknown.clone(), unknown]);
    server.say(Say::Has(Vec::new(), 5));
    assert_eq!(server.asker().ask().await.0, [NONE, NONE]);
    server.say(Say::HalfHas(ips(&["10.0.0.1"]), 5));
    let [v4, v6] = server.asker().ask().await.0;
    assert_eq!(v4, has(&["10.0.0.1"]));
    assert!(matches!(v6, RecordAnswer::Failed(_)), "half of it is not all: {v6:?}");
    server.say(Say::Nothing);
    failed(&server.asker().ask().await.0, "in time");
    server.say(Say::Garbage);
    let answers = server.asker().ask().await.0;
    assert!(answers.iter().all(|a| matches!(a, RecordAnswer::Failed(_))), "{answers:?}");
}

#[tokio::test]
async fn a_change_is_followed_when_its_time_to_live_ends_and_a_fault_changes_nothing() {
    let server = Server::start(Say::Has(ips(&["10.0.0.1"]), 0)).await;
    let (tell, mut news) = mpsc::channel(super::super::NEWS_MAX);
    let retry = Backoff::new(Duration::from_millis(20), 1);
    let task =
        tokio::spawn(follow(server.asker(), HostRecords::new("logic".into(), 7, retry), tell));
    let mut next = async || {
        let news = tokio::time::timeout(Duration::from_secs(30), news.recv()).await;
        let news = news.expect("in time").expect("it runs");
        assert_eq!(&*news.source, "dns:logic");
        news.event
    };
    assert_eq!(known(&next().await), ["10.0.0.1:7"]);
    server.say(Say::Has(ips(&["10.0.0.2"]), 0));
    assert_eq!(known(&next().await), ["10.0.0.2:7"]);
    server.say(Say::Code(SERVFAIL));
    assert!(matches!(next().await, SourceEvent::Stale { why } if why.contains("Server Failure")));
    server.say(Say::Code(NXDOMAIN));
    assert!(matches!(next().await, SourceEvent::Stale { why } if why.contains("NXDOMAIN")));
    server.say(Say::Has(ips(&["10.0.0.2"]), 300));
    assert_eq!(next().await, SourceEvent::Fresh);
    drop(news);
    tokio::time::timeout(Duration::from_secs(30), task).await.expect("it ends").unwrap();
}

#[test]
fn each_thing_is_told_once() {
    let mut records = records();
    let (events, pause) = records.take([has(&["10.0.0.2", "10.0.0.1"]), NONE], TTL);
    assert_eq!(
        (events.len(), known(&events[0]), pause),
        (1, vec!["10.0.0.1:7".into(), "10.0.0.2:7".into()], TTL)
    );
    assert_eq!(records.take([has(&["10.0.0.1", "10.0.0.2"]), NONE], TTL), (vec![], TTL));
    let failed = || RecordAnswer::Failed("no name server answered in time".into());
    let (events, _) = records.take([failed(), failed()], TTL_MIN);
    let [SourceEvent::Stale { why }] = &events[..] else { panic!("{events:?}") };
    assert!(why.contains("in time; the 2 found before stay"), "{why}");
    assert_eq!(records.take([failed(), failed()], TTL_MIN).0, []);
    assert_eq!(
        records.take([has(&["10.0.0.1", "10.0.0.2"]), NONE], TTL),
        (vec![SourceEvent::Fresh], TTL)
    );
    let (events, _) = records.take([failed(), failed()], TTL_MIN);
    assert!(
        matches!(events[..], [SourceEvent::Stale { .. }]),
        "it went away once more: {events:?}"
    );
    let (events, _) = records.take([has(&["10.0.0.3"]), NONE], TTL);
    assert_eq!(known(&events[0]), ["10.0.0.3:7"]);
    assert_eq!(events.len(), 1, "a SourceContents says that it is back");
}

#[test]
fn an_empty_answer_empties_nothing() {
    for empty in [NONE, RecordAnswer::Empty("NXDOMAIN"), has(&["0.0.0.0"])] {
        let mut records = records();
        let (events, _) = records.take([empty.clone(), NONE], TTL);
        assert!(matches!(&events[events.len() - 1], SourceEvent::Stale { .. }), "{events:?}");
        records.take([has(&["10.0.0.1"]), has(&["fd00::1"])], TTL);
        let (events, _) = records.take([empty, NONE], TTL);
        let stale = matches!(&events[events.len() - 1], SourceEvent::Stale { .. });
        assert!(
            stale && !events.iter().any(|w| matches!(w, SourceEvent::Contents { .. })),
            "{events:?}"
        );
        // The next answer is still compared with the addresses of before: AAAA has had one.
        let (events, _) = records.take([has(&["10.0.0.1"]), RecordAnswer::Failed("x".into())], TTL);
        assert!(
            matches!(events[..], [SourceEvent::Stale { .. }]),
            "the AAAA record stays: {events:?}"
        );
    }
}

#[test]
fn a_family_that_cannot_be_asked_keeps_its_addresses() {
    let mut records = records();
    records.take([has(&["10.0.0.1"]), has(&["fd00::1"])], TTL);
    let failed = || RecordAnswer::Failed("x".into());
    let (events, pause) = records.take([has(&["10.0.0.2"]), failed()], TTL_MIN);
    assert_eq!(known(&events[0]), ["10.0.0.2:7", "[fd00::1]:7"]);
    assert!(matches!(events[1], SourceEvent::Stale { .. }) && events.len() == 2, "{events:?}");
    assert!(pause <= TTL_MIN, "the records that were found still end: {pause:?}");
    assert_eq!(records.take([has(&["10.0.0.2"]), failed()], TTL_MIN).0, []);
    let (events, _) = records.take([has(&["10.0.0.2"]), NONE], TTL);
    assert_eq!(known(&events[0]), ["10.0.0.2:7"], "now it is known to be gone");
}

#[test]
fn a_family_that_never_answers_is_a_note_once_and_nothing_is_stale() {
    let failed = |why: &str| RecordAnswer::Failed(why.into());
    for first in [0, 1] {
        let pair = |known: &RecordAnswer, other: RecordAnswer| match first {
            0 => [known.clone(), other],
            _ => [other, known.clone()],
        };
        let mut records = records();
        let known = has(&[["10.0.0.1", "fd00::1"][first]]);
        let (events, pause) = records.take(pair(&known, failed("SERVFAIL")), TTL);
        let [SourceEvent::Contents { .. }, SourceEvent::Note { why }] = &events[..] else {
            panic!("{events:?}")
        };
        assert!(why.contains("logic") && why.contains("SERVFAIL"), "{why}");
        assert!(pause < RETRY_FIRST * 2, "it may have addresses after all: {pause:?}");
        for n in 0..15 {
            let (events, pause) = records.take(pair(&known, failed("SERVFAIL")), TTL);
            assert_eq!(events, []);
            assert!(n < 8 || pause == TTL, "more and more seldom: {pause:?}");
        }
        let (events, _) = records.take(pair(&known, failed("NOTIMP")), TTL);
        assert!(matches!(&events[..], [SourceEvent::Note { why }] if why.contains("NOTIMP")));
        // Both failing is an outage, which ends with the one that is needed.
        let (events, _) = records.take([failed("x"), failed("x")], TTL);
        assert!(matches!(events[..], [SourceEvent::Stale { .. }]), "{events:?}");
        let (events, _) = records.take(pair(&known, failed("x")), TTL);
        assert!(matches!(events[..], [SourceEvent::Fresh, SourceEvent::Note { .. }]), "{events:?}");
        // No address of the one and an error of the other is an outage, too.
        let (events, _) = records.take(pair(&NONE, failed("x")), TTL);
        assert!(matches!(events[..], [SourceEvent::Stale { .. }]), "{events:?}");
        // Once it has answered, its addresses are in use, and an error makes them stale.
        let other = has(&[["fd00::2", "10.0.0.2"][first]]);
        let (events, _) = records.take(pair(&known, other), TTL);
        assert_eq!(known_of(&events).len(), 2, "{events:?}");
        let (events, _) = records.take(pair(&known, failed("x")), TTL);
        assert!(matches!(events[..], [SourceEvent::Stale { .. }]), "{events:?}");
    }
}

/// Addresses of the first event.
fn known_of(events: &[SourceEvent]) -> Vec<String> {
    events.first().map(known).unwrap_or_default()
}

#[test]
fn pauses_after_failures_grow_to_their_maximum_and_begin_again() {
    let mut records = records();
    let mut nominal = RETRY_FIRST;
    for _ in 0..15 {
        let pause = records.take([RecordAnswer::Failed("x".into()), NONE], TTL_MIN).1;
        let range = nominal.mul_f64(0.799)..=nominal.mul_f64(1.201);
        assert!(range.contains(&pause), "{pause:?} for {nominal:?}");
        nominal = nominal.mul_f64(1.6).min(RETRY_MAX);
    }
    records.take([has(&["10.0.0.1"]), NONE], TTL);
    let pause = records.take([RecordAnswer::Failed("x".into()), NONE], TTL_MIN).1;
    assert!(pause < RETRY_FIRST * 2, "{pause:?}");
}

#[test]
fn too_many_and_unusable_addresses_are_left_out_and_that_is_told_once() {
    let many: BTreeSet<IpAddr> =
        (0..300u16).map(|n| IpAddr::from([10, 0, (n >> 8) as u8, n as u8])).collect();
    let mut records = records();
    let (events, _) = records.take([RecordAnswer::Has(many.clone()), NONE], TTL);
    assert!(
        matches!(&events[0], SourceEvent::Bad { why, .. } if why.contains("300")),
        "{events:?}"
    );
    assert_eq!((known(&events[1]).len(), events.len()), (ADDRESSES_MAX, 2));
    assert_eq!(records.take([RecordAnswer::Has(many), NONE], TTL).0, []);
    let (events, _) = records.take([has(&["10.0.0.1", "0.0.0.0"]), has(&["fe80::1"])], TTL);
    assert!(
        matches!(&events[0], SourceEvent::Bad { why, .. } if why.contains("0.0.0.0")),
        "{events:?}"
    );
    assert_eq!(known(&events[1]), ["10.0.0.1:7"]);
}

#[test]
fn an_instance_is_named_after_its_service_and_address_alone() {
    let name = |service: &str, ip: &str| instance_name(service, ip.parse().unwrap());
    assert_eq!(&*name("logic", "10.0.0.7"), "logic-10.0.0.7");
    assert_eq!(&*name("logic", "fd00::7"), "logic-fd00--7");
    // The names' hashes decide where keys go: these names must stay as they are.
    let long = "1111:2222:3333:4444:5555:6666:7777:8888";
    let service = "a".repeat(64);
    let cut = name(&service, long);
    assert_eq!(&*cut, "aaaaaaaaaaaaaaa-7d26ee8c-1111-2222-3333-4444-5555-6666-7777-8888");
    assert!(is_name(&cut));
    assert_ne!(cut, name(&service[1..], long));
}

#[tokio::test]
async fn a_host_that_is_none_is_refused_with_the_rule() {
    let (tell, _news) = mpsc::channel(1);
    let start =
        |host: &str, port| start("logic".into(), host.into(), port, &[], 1, tell.clone()).err();
    for address in ["10.0.0.1", "fd00::1", "[fd00::1]"] {
        assert!(start(address, 7).unwrap().contains("write it into instances"), "{address}");
    }
    for (host, port) in [("", 7), (".", 7), ("a..b", 7), ("logic.test", 0)] {
        assert!(start(host, port).unwrap().contains("must be a host's name"), "{host:?}");
    }
}
