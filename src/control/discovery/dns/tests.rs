//! DNS as a source, against a name server of the tests that can misbehave.

use std::collections::BTreeSet;
use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;

use super::targets::{SrvAnswer, SrvRecord};
use super::*;
use crate::config::Family;

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

    fn asker(&self) -> Resolver {
        let timeout = Duration::from_millis(100);
        Resolver { servers: [self.address].into(), family: Family::Any, timeout }
    }

    /// Asks for the addresses of `logic.test`.
    async fn ask(&self) -> (HostAnswers, Duration) {
        self.asker().ask_host(&name("logic.test")).await
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

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn told(retry: Duration) -> Told {
    Told::new("logic".into(), Backoff::new(retry, 1))
}

fn records() -> HostRecords {
    HostRecords::new(7, told(RETRY_FIRST), |_| true)
}

/// Addresses in an event with contents.
fn known(event: &SourceEvent) -> Vec<String> {
    let SourceEvent::Contents { contents, .. } = event else { panic!("{event:?}") };
    contents.instances.iter().map(|i| i.addresses.to_string()).collect()
}

const TTL: Duration = Duration::from_secs(9);
const NONE: RecordAnswer = RecordAnswer::Empty("no address");

#[tokio::test]
async fn a_and_aaaa_are_found_with_their_time_to_live() {
    let server = Server::start(Say::Has(ips(&["10.0.0.2", "10.0.0.1", "fd00::7"]), 77)).await;
    let (answers, ttl) = server.ask().await;
    assert_eq!(answers, [has(&["10.0.0.1", "10.0.0.2"]), has(&["fd00::7"])]);
    assert!((76..=77).contains(&ttl.as_secs()), "{ttl:?}");
    server.say(Say::Has(ips(&["10.0.0.1"]), 0));
    assert_eq!(server.ask().await, ([has(&["10.0.0.1"]), NONE], TTL_MIN));
    server.say(Say::Has(ips(&["10.0.0.1"]), 86_400));
    assert_eq!(server.ask().await.1, TTL_MAX);
}

#[tokio::test]
async fn an_answer_that_was_cut_is_asked_for_over_tcp() {
    let many: Vec<IpAddr> = (0..100).map(|n| IpAddr::from([10, 0, 0, n])).collect();
    let server = Server::start(Say::HasOverTcp(many.clone(), 5)).await;
    let ([v4, v6], _) = server.ask().await;
    assert_eq!((v4, v6), (RecordAnswer::Has(many.into_iter().collect()), NONE));
}

#[tokio::test]
async fn what_is_wrong_is_told_apart() {
    let server = Server::start(Say::Code(SERVFAIL)).await;
    let failed = |answers: &[RecordAnswer; 2], text: &str| {
        let said = |a: &RecordAnswer| matches!(a, RecordAnswer::Failed(why) if why.contains(text));
        assert!(answers.iter().all(said), "{answers:?}");
    };
    failed(&server.ask().await.0, "Server Failure");
    server.say(Say::Code(NXDOMAIN));
    let unknown = RecordAnswer::Empty("NXDOMAIN");
    assert_eq!(server.ask().await.0, [unknown.clone(), unknown]);
    server.say(Say::Has(Vec::new(), 5));
    assert_eq!(server.ask().await.0, [NONE, NONE]);
    server.say(Say::HalfHas(ips(&["10.0.0.1"]), 5));
    let [v4, v6] = server.ask().await.0;
    assert_eq!(v4, has(&["10.0.0.1"]));
    assert!(matches!(v6, RecordAnswer::Failed(_)), "half of it is not all: {v6:?}");
    server.say(Say::Nothing);
    failed(&server.ask().await.0, "in time");
    server.say(Say::Garbage);
    let answers = server.ask().await.0;
    assert!(answers.iter().all(|a| matches!(a, RecordAnswer::Failed(_))), "{answers:?}");
}

#[tokio::test]
async fn a_change_is_followed_when_its_time_to_live_ends_and_a_fault_changes_nothing() {
    let server = Server::start(Say::Has(ips(&["10.0.0.1"]), 0)).await;
    let (tell, mut news) = mpsc::channel(super::super::NEWS_MAX);
    let records = HostRecords::new(7, told(Duration::from_millis(20)), |_| true);
    let asked = Asked::Host(name("logic.test"), records);
    let task = tokio::spawn(follow(server.asker(), asked, "dns:logic".into(), tell));
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
    assert_eq!(known(&events[0]), ["[fd00::1]:7 or 10.0.0.2:7"]);
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
        let both = known_of(&events);
        assert!(both.len() == 1 && both[0].starts_with("[fd00::"), "one host: {both:?}");
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
    assert_eq!((known(&events[1]).len(), events.len()), (INSTANCES_MAX, 2));
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

/// Names of the instances of the first event.
fn names(events: &[SourceEvent]) -> Vec<String> {
    let Some(SourceEvent::Contents { contents, .. }) = events.first() else { panic!("{events:?}") };
    contents.instances.iter().map(|i| i.name.to_string()).collect()
}

#[test]
fn one_host_with_both_addresses_is_one_instance_that_keeps_its_name() {
    let mut records = records();
    let (events, _) = records.take([has(&["10.0.0.7"]), NONE], TTL);
    assert_eq!(
        (names(&events), known_of(&events)),
        (vec!["logic-10.0.0.7".to_owned()], vec!["10.0.0.7:7".to_owned()])
    );
    let (events, _) = records.take([has(&["10.0.0.7"]), has(&["fd00::7"])], TTL);
    assert_eq!(names(&events), ["logic-10.0.0.7"]);
    assert_eq!(known_of(&events), ["[fd00::7]:7 or 10.0.0.7:7"], "IPv6 first, RFC 8305");
    // A family that fails changes nothing; one that is gone takes its address along.
    let (events, _) = records.take([has(&["10.0.0.7"]), RecordAnswer::Failed("x".into())], TTL);
    assert!(matches!(events[..], [SourceEvent::Stale { .. }]), "{events:?}");
    let (events, _) = records.take([NONE, has(&["fd00::7"])], TTL);
    assert_eq!(names(&events), ["logic-fd00--7"]);
}

#[test]
fn of_many_hosts_one_family_is_used() {
    let (v4, v6) = (["10.0.0.1", "10.0.0.2"], ["fd00::1", "fd00::2"]);
    let mut records = records();
    let (events, _) = records.take([has(&v4), has(&v6)], TTL);
    assert_eq!(names(&events), ["logic-10.0.0.1", "logic-10.0.0.2"], "nobody can pair them");
    // The other one is not needed, so its failure is a note.
    let (events, _) = records.take([has(&v4), RecordAnswer::Failed("x".into())], TTL);
    assert!(matches!(events[..], [SourceEvent::Note { .. }]), "{events:?}");
    // An error does not change the family, only an answer does.
    let (events, _) = records.take([RecordAnswer::Failed("x".into()), has(&v6)], TTL);
    assert!(matches!(events[..], [SourceEvent::Stale { .. }]), "{events:?}");
    let (events, _) = records.take([NONE, has(&v6)], TTL);
    assert_eq!(names(&events), ["logic-fd00--1", "logic-fd00--2"]);
    // One of them grows before the other does: three hosts are never one.
    let (events, _) = records.take([has(&v4[..1]), has(&v6)], TTL);
    assert_eq!(names(&events), ["logic-10.0.0.1"]);
}

#[test]
fn a_family_without_a_route_is_not_used_while_the_other_has_one() {
    let both = [has(&["10.0.0.1", "10.0.0.2"]), has(&["fd00::1", "fd00::2"])];
    let found = |has_route: fn(IpAddr) -> bool| {
        let mut records = HostRecords::new(7, told(RETRY_FIRST), has_route);
        names(&records.take(both.clone(), TTL).0).remove(0)
    };
    assert_eq!(found(|ip| ip.is_ipv6()), "logic-fd00--1");
    assert_eq!(found(|ip| ip.is_ipv4()), "logic-10.0.0.1");
    assert_eq!(found(|_| false), "logic-10.0.0.1");
    assert!(has_route("127.0.0.1".parse().unwrap()), "loopback has one");
}

#[tokio::test]
async fn a_family_that_is_not_wanted_is_not_asked_for() {
    let server = Server::start(Say::Has(ips(&["10.0.0.1", "fd00::7"]), 5)).await;
    let asked = async |family| {
        let resolver = Resolver { family, ..server.asker() };
        resolver.ask_host(&name("logic.test")).await.0
    };
    assert_eq!(asked(Family::V4).await, [has(&["10.0.0.1"]), RecordAnswer::NotAsked]);
    assert_eq!(asked(Family::V6).await, [RecordAnswer::NotAsked, has(&["fd00::7"])]);
    let mut records = records();
    let (events, pause) = records.take(asked(Family::V6).await, TTL);
    assert_eq!((names(&events), events.len(), pause), (vec!["logic-fd00--7".into()], 1, TTL));
}

/// An SRV record `priority weight port host`, with the answers for its host.
fn srv(record: &str, answers: HostAnswers) -> (SrvRecord, HostAnswers) {
    let mut words = record.split(' ');
    let mut number = || words.next().unwrap().parse::<u16>().unwrap();
    let (priority, weight, port) = (number(), number(), number());
    let host = words.next().unwrap_or_default().to_owned();
    (SrvRecord { priority, weight, port, host }, answers)
}

fn targets() -> TargetRecords {
    TargetRecords::new(told(RETRY_FIRST))
}

/// Instances of the first event: name, addresses, weight.
fn rows(events: &[SourceEvent]) -> Vec<String> {
    let Some(SourceEvent::Contents { contents, .. }) = events.first() else { panic!("{events:?}") };
    let row = |i: &super::super::FoundInstance| format!("{} {} {}", i.name, i.addresses, i.weight);
    contents.instances.iter().map(row).collect()
}

#[test]
fn each_host_and_port_of_srv_records_is_an_instance_named_after_them() {
    let mut targets = targets();
    let (events, pause) = targets.take(
        SrvAnswer::Has(vec![
            srv("0 30 50001 node1.internal", [has(&["10.0.0.1"]), has(&["fd00::1"])]),
            srv("0 10 50002 node1.internal", [has(&["10.0.0.1"]), has(&["fd00::1"])]),
            srv("0 0 50001 node2.internal", [has(&["10.0.0.2"]), NONE]),
            srv("0 20 50001 node1.internal", [has(&["10.0.0.1"]), has(&["fd00::1"])]),
        ]),
        TTL,
    );
    assert_eq!(
        rows(&events),
        [
            "logic-node1.internal-50001 [fd00::1]:50001 or 10.0.0.1:50001 30",
            "logic-node1.internal-50002 [fd00::1]:50002 or 10.0.0.1:50002 10",
            "logic-node2.internal-50001 10.0.0.2:50001 1",
        ]
    );
    assert_eq!((events.len(), pause), (1, TTL));
    // Another address under the same name is the same instance for the ring.
    let moved = SrvAnswer::Has(vec![srv("0 5 7 node2", [has(&["10.0.0.9"]), NONE])]);
    assert_eq!(rows(&targets.take(moved, TTL).0), ["logic-node2-7 10.0.0.9:7 1"]);
}

#[test]
fn the_records_of_a_higher_priority_value_are_used_only_without_those_of_a_lower_one() {
    let answer = |first: RecordAnswer| {
        SrvAnswer::Has(vec![
            srv("20 1 7 spare", [has(&["10.0.0.9"]), NONE]),
            srv("10 1 7 node", [first, NONE]),
        ])
    };
    let mut targets = targets();
    let (events, _) = targets.take(answer(has(&["10.0.0.1"])), TTL);
    assert_eq!(names(&events), ["logic-node-7"]);
    // A lookup that fails says nothing against the host.
    let (events, _) = targets.take(answer(RecordAnswer::Failed("x".into())), TTL);
    assert!(matches!(&events[..], [SourceEvent::Stale { why }] if why.contains("node: x")));
    let (events, _) = targets.take(answer(RecordAnswer::Empty("NXDOMAIN")), TTL);
    let [SourceEvent::Bad { why, .. }, SourceEvent::Contents { .. }] = &events[..] else {
        panic!("{events:?}")
    };
    assert!(why.contains("node, which an SRV record names, has no address"), "{why}");
    assert_eq!(names(&events[1..]), ["logic-spare-7"]);
}

#[test]
fn srv_records_without_a_usable_host_change_nothing_and_say_why() {
    let mut targets = targets();
    targets.take(SrvAnswer::Has(vec![srv("0 1 7 node", [has(&["10.0.0.1"]), NONE])]), TTL);
    let unasked = [RecordAnswer::NotAsked, RecordAnswer::NotAsked];
    for (answer, part) in [
        (SrvAnswer::Has(vec![srv("0 0 0 ", unasked)]), "is not available"),
        (SrvAnswer::Has(vec![srv("0 0 0 node", [has(&["10.0.0.1"]), NONE])]), "port 0"),
        (SrvAnswer::Has(vec![srv("0 0 7 a\\032b", [has(&["10.0.0.1"]), NONE])]), "no host's name"),
        (SrvAnswer::Has(vec![srv("0 0 7 new", [NONE, NONE])]), "has no address"),
        (SrvAnswer::Empty("NXDOMAIN"), "NXDOMAIN"),
        (SrvAnswer::Failed("no name server answered in time".into()), "in time"),
    ] {
        let (events, _) = targets.take(answer, TTL);
        let [SourceEvent::Stale { why }] = &events[..] else { panic!("{part}: {events:?}") };
        assert!(why.contains(part) && why.contains("the 1 found before stay"), "{why}");
    }
}

#[test]
fn only_the_ratio_of_srv_weights_counts_and_it_fits_on_the_ring() {
    let weights = |weights: &[u16]| {
        let record = |(n, weight): (usize, &u16)| {
            srv(&format!("0 {weight} 7 n{n:03}"), [has(&["10.0.0.1"]), NONE])
        };
        let records = weights.iter().enumerate().map(record).collect();
        let (events, _) = targets().take(SrvAnswer::Has(records), TTL);
        let SourceEvent::Contents { contents, .. } = &events[0] else { panic!("{events:?}") };
        contents.instances.iter().map(|i| i.weight).collect::<Vec<_>>()
    };
    assert_eq!(weights(&[33, 33, 33]), [1, 1, 1], "as CoreDNS divides 100");
    assert_eq!(weights(&[50, 100, 10]), [5, 10, 1]);
    assert_eq!(weights(&[0, 0]), [1, 1]);
    assert_eq!(weights(&[65_535, 1]), [999, 1]);
    let many: Vec<u16> = (1..=256).map(|n| n * 255).collect();
    let sum: u32 = weights(&many).iter().sum();
    assert!((1..=1256).contains(&sum), "{sum}");
}

#[test]
fn an_instance_of_an_srv_record_has_a_name_that_fits_and_is_its_own() {
    let name = |host: &str| target_name("logic", host, 50_001);
    assert_eq!(
        &*name("logic-0.logic.game.svc.cluster.local"),
        "logic-logic-0.logic.game.svc.cluster.local-50001"
    );
    // The names' hashes decide where keys go: these names must stay as they are.
    let long = "logic-0.logic-headless.a-namespace-with-a-name.svc.cluster.local";
    let cut = name(long);
    assert_eq!(&*cut, "logic-logic-0.logic-headless.a-namespace-with-a-n-2a97c13a-50001");
    assert!(is_name(&cut));
    assert_ne!(cut, name(&long.replace("local", "lokal")));
}

#[test]
fn too_many_srv_records_are_left_out_and_that_is_told() {
    let record = |n: usize| match n < INSTANCES_MAX {
        true => srv(&format!("0 1 7 n{n:03}"), [has(&["10.0.0.1"]), NONE]),
        false => srv(&format!("0 1 7 n{n:03}"), [RecordAnswer::NotAsked, RecordAnswer::NotAsked]),
    };
    let (events, _) = targets().take(SrvAnswer::Has((0..300).map(record).collect()), TTL);
    let [SourceEvent::Bad { why, .. }, SourceEvent::Contents { contents, .. }] = &events[..] else {
        panic!("{events:?}")
    };
    assert!(why.contains("300 SRV records"), "{why}");
    assert_eq!(contents.instances.len(), INSTANCES_MAX);
}
