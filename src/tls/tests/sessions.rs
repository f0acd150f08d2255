//! A session and a client exchange everything, however the bytes are cut.

use std::io::{Cursor, Read, Write};
use std::sync::Arc;

use proptest::prelude::*;
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, Error, SupportedProtocolVersion};

use super::*;
use crate::tls::session::{CIPHER_BYTES_MAX, Failure, Handshake, PLAIN_BYTES_MAX, Session};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// A client and a session, and the bytes that each has received.
struct Both {
    client: ClientConnection,
    session: Session,
    scratch: Vec<u8>,
    /// Plaintext at the server, not reported as sent.
    outbox: Vec<u8>,
    heard: Vec<u8>,
    handshake: Option<Handshake>,
    ended: bool,
    failure: Option<Failure>,
    /// Bytes that the client's and the server's kernel take at once.
    up: usize,
    down: usize,
}

impl Both {
    fn new(server: &Server, client: ClientConfig, name: &str) -> Self {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        Self {
            client: ClientConnection::new(Arc::new(client), name).unwrap(),
            session: Session::new(server).unwrap(),
            scratch: vec![0; CIPHER_BYTES_MAX],
            outbox: Vec::new(),
            heard: Vec::new(),
            handshake: None,
            ended: false,
            failure: None,
            up: usize::MAX,
            down: usize::MAX,
        }
    }

    fn take(&mut self, input: &mut [u8]) {
        match self.session.receive(input, &mut self.heard) {
            Ok(progress) => {
                self.handshake = self.handshake.or(progress.handshake);
                self.ended |= progress.ended;
            }
            Err(failure) => self.failure = Some(failure),
        }
    }

    /// Lets the server send; `room` is the number of bytes that the kernel takes.
    fn sent(&mut self, mut room: usize) -> Vec<u8> {
        let mut wire = Vec::new();
        let told = self.session.flush(&self.outbox, &mut self.scratch, |bytes| {
            let n = bytes.len().min(room);
            room -= n;
            wire.extend_from_slice(&bytes[..n]);
            Some(n)
        });
        self.outbox.drain(..told.expect("the kernel takes"));
        wire
    }

    /// Runs until neither side has more to send. Returns the bytes that the client reads.
    fn exchange(&mut self) -> Result<Vec<u8>, Error> {
        let mut read = Vec::new();
        loop {
            let mut up = Vec::new();
            while self.client.wants_write() {
                self.client.write_tls(&mut up).unwrap();
            }
            let most = self.up.min(up.len().max(1));
            for chunk in up.chunks_mut(most) {
                self.take(chunk);
            }
            let mut down = Vec::new();
            loop {
                let more = self.sent(self.down);
                if more.is_empty() {
                    break;
                }
                down.extend(more);
            }
            let quiet = up.is_empty() && down.is_empty();
            let mut from = Cursor::new(down);
            while (from.position() as usize) < from.get_ref().len() {
                self.client.read_tls(&mut from).unwrap();
                self.client.process_new_packets()?;
                // An end without close_notify is reported here; none of these tests makes one.
                let _ = self.client.reader().read_to_end(&mut read);
            }
            if quiet {
                return Ok(read);
            }
        }
    }
}

fn both(version: &'static SupportedProtocolVersion) -> Both {
    let issuer = issuer();
    Both::new(&server(&issuer, &["a.test"]), client(&issuer, &[version]), "a.test")
}

#[test]
fn messages_go_both_ways_in_both_versions_however_they_are_cut() {
    let large: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    for version in VERSIONS {
        for (up, down) in [(usize::MAX, usize::MAX), (1, 1), (7, 100_000), (5_000, 333)] {
            let mut both = both(version);
            (both.up, both.down) = (up, down);
            let large = &large[..if down == 1 { 3_000 } else { large.len() }];
            both.exchange().unwrap();
            assert_eq!(both.handshake, Some(Handshake::Full));
            assert_eq!(both.session.buffered(), 0, "nothing is kept when nothing is under way");
            // rustls' buffer ends at 64 KiB: the bytes that it takes are received.
            let taken = both.client.writer().write(large).unwrap();
            let _ = both.exchange().unwrap();
            assert!(taken > 0 && both.heard == large[..taken]);
            both.outbox = large.to_vec();
            assert_eq!(both.exchange().unwrap(), large);
            assert!(both.outbox.is_empty());
            assert_eq!(both.session.buffered(), 0);
        }
    }
}

#[test]
fn a_hello_in_many_records_is_put_together_however_those_are_cut() {
    for version in VERSIONS {
        for up in [usize::MAX, 1, 40, 68, 69, 70, 200] {
            let issuer = issuer();
            let mut config = client(&issuer, &[version]);
            // Records of 64 bytes and their headers.
            config.max_fragment_size = Some(69);
            let mut both = Both::new(&server(&issuer, &["a.test"]), config, "a.test");
            both.up = up;
            both.exchange().unwrap();
            assert_eq!(both.handshake, Some(Handshake::Full));
            both.client.writer().write_all(&[7; 5_000]).unwrap();
            both.outbox = vec![8; 5_000];
            assert_eq!(both.exchange().unwrap(), [8; 5_000]);
            assert_eq!(both.heard, [7; 5_000]);
            // The held part of the next record does not delay the bytes to be sent.
            both.client.writer().write_all(b"next").unwrap();
            let mut wire = Vec::new();
            both.client.write_tls(&mut wire).unwrap();
            let (first, rest) = wire.split_at_mut(9);
            both.take(first);
            both.outbox = b"meanwhile".to_vec();
            assert_eq!(both.exchange().unwrap(), b"meanwhile");
            both.take(rest);
            assert!(both.heard.ends_with(b"next") && both.session.buffered() == 0);
        }
    }
}

#[test]
fn the_last_byte_counts_as_sent_when_all_is_and_the_others_as_they_move() {
    let mut both = both(&TLS13);
    both.exchange().unwrap();
    both.outbox = vec![7; PLAIN_BYTES_MAX];
    assert!(both.sent(0).is_empty());
    assert_eq!(both.outbox.len(), PLAIN_BYTES_MAX, "nothing was taken");
    assert!(both.session.is_unsent());
    both.sent(1_000);
    assert_eq!(both.outbox.len(), PLAIN_BYTES_MAX - 1_000);
    // Ciphertext is longer: its tail stands for the last byte.
    both.sent(PLAIN_BYTES_MAX - 1_001);
    assert_eq!(both.outbox.len(), 1);
    both.sent(3);
    assert_eq!(both.outbox.len(), 1);
    both.outbox.extend(b"more");
    let more = both.sent(usize::MAX);
    assert!(both.outbox.is_empty() && !more.is_empty());
    assert!(!both.session.is_unsent());
}

#[test]
fn a_kernel_that_is_gone_ends_it() {
    let mut both = both(&TLS13);
    both.exchange().unwrap();
    assert_eq!(both.session.flush(b"a", &mut both.scratch, |_| None), None);
}

#[test]
fn close_notify_is_told_and_heard() {
    for version in VERSIONS {
        let mut both = both(version);
        both.exchange().unwrap();
        both.client.writer().write_all(b"bye").unwrap();
        both.client.send_close_notify();
        both.exchange().unwrap();
        assert_eq!((both.heard.as_slice(), both.ended), (&b"bye"[..], true));
        assert!(both.session.has_ended());
        // The other direction is still open (RFC 8446, 6.1).
        both.outbox = b"you, too".to_vec();
        assert_eq!(both.exchange().unwrap(), b"you, too");
        both.session.close(&mut both.scratch);
        both.session.close(&mut both.scratch);
        both.exchange().unwrap();
        let state = both.client.process_new_packets().unwrap();
        assert!(state.peer_has_closed());
        // No bytes are sent after it, and none are received.
        both.outbox = b"no".to_vec();
        assert_eq!(both.exchange().unwrap(), b"");
        both.take(&mut [1; 100]);
        assert_eq!(both.failure, None);
    }
}

#[test]
fn bytes_that_come_after_our_close_notify_are_not_looked_at() {
    for version in VERSIONS {
        // A good record, one that cannot be decrypted, and no record at all.
        for broken in [0, 1, 2] {
            let mut both = both(version);
            both.exchange().unwrap();
            both.session.close(&mut both.scratch);
            both.client.writer().write_all(b"too late").unwrap();
            let mut wire = Vec::new();
            both.client.write_tls(&mut wire).unwrap();
            match broken {
                0 => {}
                1 => *wire.last_mut().unwrap() ^= 1,
                _ => wire.fill(0xff),
            }
            both.take(&mut wire.clone());
            both.take(&mut wire);
            assert_eq!((both.failure, both.heard.as_slice()), (None, &b""[..]), "{broken}");
            assert!(!both.sent(usize::MAX).is_empty(), "the close_notify");
            assert!(both.sent(usize::MAX).is_empty(), "and nothing after it");
        }
    }
}

#[test]
fn nothing_is_said_before_the_handshake_is_complete() {
    let mut both = both(&TLS13);
    both.outbox = b"early".to_vec();
    assert!(both.session.is_handshaking());
    assert!(both.sent(usize::MAX).is_empty());
    both.session.close(&mut both.scratch);
    assert!(both.sent(usize::MAX).is_empty());
    assert_eq!(both.exchange().unwrap(), b"early");
}

#[test]
fn bytes_that_are_no_tls_get_an_alert() {
    let request = b"GET /ws HTTP/1.1\r\nHost: a.test\r\n\r\n";
    let mut both = both(&TLS13);
    both.take(&mut request.to_vec());
    assert_eq!(both.failure, Some(Failure::NotTls));
    let alert = both.sent(usize::MAX);
    assert_eq!((alert[0], alert.len()), (21, 7), "{alert:?}");
    assert_eq!(both.session.buffered(), 0);
}

#[test]
fn versions_below_1_2_are_refused_with_an_alert() {
    // A ClientHello of TLS 1.1: no extensions, one suite.
    let mut body = vec![3, 2];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0, 0x2f, 1, 0]);
    let mut hello = vec![22, 3, 1, 0, body.len() as u8 + 4, 1, 0, 0, body.len() as u8];
    hello.extend(body);
    let mut both = both(&TLS12);
    both.take(&mut hello);
    assert!(both.failure.is_some());
    assert_eq!(both.sent(usize::MAX)[..2], [21, 3]);
}

#[test]
fn a_record_or_message_without_end_is_given_up() {
    // Handshake messages of 64 KiB are within what rustls takes.
    let mut both = both(&TLS13);
    let mut endless = vec![22, 3, 1, 0x40, 0, 1, 0, 0xff, 0];
    endless.extend([0; 0x4000 - 4]);
    both.take(&mut endless);
    for _ in 0..3 {
        let mut more = vec![22, 3, 1, 0x40, 0];
        more.extend([0; 0x4000]);
        both.take(&mut more);
    }
    assert_eq!(both.failure, Some(Failure::Broken));
    assert_eq!(both.sent(usize::MAX)[..2], [21, 3]);
    assert_eq!(both.session.buffered(), 0);
}

#[test]
fn a_client_that_turns_away_is_told_apart() {
    let (ours, other) = (issuer(), issuer());
    let mut both = Both::new(&server(&ours, &["a.test"]), client(&other, &[&TLS13]), "a.test");
    assert!(both.exchange().is_err());
    // The alert of the client.
    both.exchange().unwrap();
    assert_eq!(both.failure, Some(Failure::Alert));
}

/// The bytes that a client sends in a whole session, by version.
fn recorded(version: &'static SupportedProtocolVersion) -> (Server, Vec<u8>) {
    let issuer = issuer();
    let server = server(&issuer, &["a.test"]);
    let mut both = Both::new(&server, client(&issuer, &[version]), "a.test");
    let mut first = Vec::new();
    both.client.write_tls(&mut first).unwrap();
    (server, first)
}

#[test]
fn garbage_at_any_place_of_a_hello_is_no_panic() {
    for version in VERSIONS {
        let (server, hello) = recorded(version);
        for at in 0..hello.len() {
            let mut bytes = hello.clone();
            bytes[at] ^= 0xff;
            let mut session = Session::new(&server).unwrap();
            let mut plain = Vec::new();
            let failed = session.receive(&mut bytes, &mut plain).is_err();
            let mut alert = Vec::new();
            session.flush(b"x", &mut vec![0; CIPHER_BYTES_MAX], |bytes| {
                alert.extend_from_slice(bytes);
                Some(bytes.len())
            });
            assert!(plain.is_empty());
            // An alert, or one behind the server's first messages.
            assert!(!failed || matches!(alert.first(), Some(21 | 22)), "{at}");
        }
    }
}

#[test]
fn a_changed_bit_in_any_record_ends_it_with_an_alert() {
    for version in VERSIONS {
        // Not all bits of the header's type and version are checked; its length is.
        for at in 5..60 {
            let mut both = both(version);
            both.exchange().unwrap();
            both.client.writer().write_all(b"good").unwrap();
            let mut wire = Vec::new();
            both.client.write_tls(&mut wire).unwrap();
            let good = wire.len();
            both.client.writer().write_all(b"0123456789").unwrap();
            both.client.write_tls(&mut wire).unwrap();
            let Some(byte) = wire.get_mut(good + at) else { continue };
            *byte ^= 1;
            both.take(&mut wire);
            assert!(both.failure.is_some(), "{at}");
            assert!(!both.sent(usize::MAX).is_empty());
            assert_eq!(both.heard, b"good", "what came before it is heard");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_cut_anyhow_are_no_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        prefix in 0usize..300,
        cut in 1usize..40,
    ) {
        let (server, hello) = recorded(&TLS13);
        let mut session = Session::new(&server).unwrap();
        let mut plain = Vec::new();
        let mut input = hello[..prefix.min(hello.len())].to_vec();
        input.extend(bytes);
        for chunk in input.chunks_mut(cut) {
            let _ = session.receive(chunk, &mut plain);
        }
        prop_assert!(plain.is_empty());
    }
}

/// Unsent bytes at a close_notify do not count as the engine's any more: the engine gives no outbox
/// then, though it may still have one.
#[test]
fn closing_in_the_middle_of_a_large_answer_sends_what_was_encrypted() {
    for version in VERSIONS {
        let mut both = both(version);
        both.exchange().unwrap();
        both.outbox = vec![7; 64 << 10];
        both.sent(1_000);
        assert!(both.session.is_unsent() && !both.outbox.is_empty());
        both.session.close(&mut both.scratch);
        both.outbox.clear();
        let wire = both.sent(usize::MAX);
        assert!(wire.len() > 60_000 && !both.session.is_unsent());
    }
}

/// Updates cost as much as many messages, and no rate counts them.
#[test]
fn updates_of_keys_without_end_break_the_connection_and_some_do_not() {
    let mut both = both(&TLS13);
    both.exchange().unwrap();
    let mut rounds = 0;
    let failure = loop {
        // More in a row than 32 are refused by rustls itself.
        for _ in 0..30 {
            both.client.refresh_traffic_keys().unwrap();
        }
        both.client.writer().write_all(b"x").unwrap();
        match both.exchange() {
            Ok(_) => rounds += 1,
            Err(error) => break Err(error),
        }
        if let Some(failure) = both.failure {
            break Ok(failure);
        }
        assert!(rounds < 200, "it goes on for ever");
    };
    assert!(matches!(failure, Ok(Failure::Broken) | Err(_)), "{failure:?}");
    assert!(rounds > 20, "an update now and then is right: {rounds}");
    // With data between them they may go on.
    let mut both = self::both(&TLS13);
    both.exchange().unwrap();
    for _ in 0..300 {
        both.client.refresh_traffic_keys().unwrap();
        both.client.writer().write_all(&[7; 300]).unwrap();
        both.exchange().unwrap();
        assert_eq!(both.failure, None);
    }
}
