//! The channel against real sockets: a well-behaved HTTP/2 server, and one that is scripted frame
//! by frame for everything that a server should not do.

mod addresses;
mod endings;
mod faults;
mod rig;
mod secured;
mod service;

use self::rig::{Rig, run, settings};
use self::service::{DATA, WINDOW_UPDATE, serve_h2, serve_raw};
use crate::config::settings::BackendSettings;
use crate::message::{CallFault, Started};

#[test]
fn a_call_gets_its_answer() {
    let server = serve_h2(|n| n);
    run(async move {
        let mut rig = Rig::open(server.address, settings());
        let ticket = rig.send(b"hello", 5_000);
        assert_eq!(rig.outcome(ticket).await.unwrap(), "hello");
        assert!(rig.channel.is_up());
        rig.close().await;
    });
}

#[test]
fn many_calls_at_once_get_each_its_own_answer() {
    let server = serve_h2(|n| n);
    run(async move {
        let mut rig = Rig::open(server.address, settings());
        for round in 0..5 {
            let sizes = [0, 1, 200, 300, 5_000, 70_000];
            let payloads: Vec<Vec<u8>> = (0..400usize)
                .map(|i| vec![(i + round) as u8; sizes[i % sizes.len()] + i / sizes.len()])
                .collect();
            let tickets: Vec<_> = payloads.iter().map(|p| rig.send(p, 30_000)).collect();
            for (ticket, payload) in tickets.into_iter().zip(&payloads) {
                assert_eq!(rig.outcome(ticket).await.unwrap(), payload);
            }
        }
        rig.close().await;
    });
}

#[test]
fn a_server_that_allows_one_stream_gets_one_at_a_time() {
    let server = serve_raw(|mut raw, _| {
        // SETTINGS_MAX_CONCURRENT_STREAMS = 1.
        raw.greet_with(&[0, 3, 0, 0, 0, 1]);
        while let Some(id) = raw.request() {
            raw.answer(id, b"x");
        }
    });
    run(async move {
        let mut rig = Rig::open(server.address, settings());
        let tickets: Vec<_> = (0..10).map(|_| rig.send(b"x", 5_000)).collect();
        for ticket in tickets {
            assert_eq!(rig.outcome(ticket).await.unwrap(), "x");
        }
        rig.close().await;
    });
}

#[test]
fn a_server_that_does_not_read_for_a_while_gets_everything_in_the_end() {
    let (go, gate) = std::sync::mpsc::channel();
    let gate = std::sync::Mutex::new(gate);
    let server = serve_raw(move |mut raw, _| {
        // SETTINGS_INITIAL_WINDOW_SIZE and the connection's window as large as they may be: only
        // the socket pushes back.
        raw.greet_with(&[0, 4, 0x7f, 0xff, 0xff, 0xff]);
        raw.frame(WINDOW_UPDATE, 0, 0, &0x7000_0000_u32.to_be_bytes());
        gate.lock().unwrap().recv().unwrap();
        while let Some(id) = raw.request() {
            raw.answer(id, b"all of it");
        }
    });
    run(async move {
        let mut rig = Rig::open(server.address, settings());
        rig.until_up().await;
        let large = vec![1; 1 << 20];
        let tickets: Vec<_> = (0..20).map(|_| rig.send(&large, 60_000)).collect();
        let late = rig.send(b"late", 100);
        let ended = rig.outcome(late).await.unwrap_err();
        assert_eq!((ended.fault, ended.started), (CallFault::TimedOut, Started::Maybe));
        go.send(()).unwrap();
        for ticket in tickets {
            assert_eq!(rig.outcome(ticket).await.unwrap(), "all of it");
        }
        rig.close().await;
    });
}

#[test]
fn a_response_in_many_pieces_is_put_together() {
    let server = serve_raw(|mut raw, _| {
        raw.greet();
        let Some(id) = raw.request() else {
            return;
        };
        raw.headers(id, &[(":status", "103")], 0);
        raw.head(id);
        for byte in [0, 0, 0, 0, 6, b'p', b'i', b'e', b'c', b'e', b's'] {
            raw.frame(DATA, 0, id, &[]);
            raw.frame(DATA, 0, id, &[byte]);
        }
        raw.trailers(id, "0");
        raw.reset(id, 0);
        raw.drain();
    });
    run(async move {
        let mut rig = Rig::open(server.address, settings());
        let ticket = rig.send(b"hello", 10_000);
        assert_eq!(rig.outcome(ticket).await.unwrap(), "pieces");
        rig.close().await;
    });
}

#[test]
fn a_handler_may_send_the_next_call() {
    let server = serve_h2(|n| n);
    run(async move {
        let mut rig = Rig::open(server.address, settings());
        let first = rig.send_chain(100);
        assert_eq!(rig.outcome(first).await.unwrap(), "link");
        rig.until("hundred outcomes", || rig.outcome_count() == 100).await;
        rig.close().await;
    });
}

/// Every connection has another fault; calls are answered, reset, ignored or lost in turn, and some
/// are cancelled: [`Rig::close`] then counts the outcomes.
#[test]
fn every_call_has_one_outcome_whatever_happens() {
    let server = serve_raw(|mut raw, index| {
        raw.greet();
        for turn in index.. {
            let Some(id) = raw.request() else {
                return;
            };
            match turn * 7 % 23 {
                0 => raw.reset(id, 7),
                1 => raw.reset(id, 8),
                2 => {}
                3 => raw.go_away(id, 0, ""),
                4 => raw.go_away(id.saturating_sub(4), 0, ""),
                5 => return raw.kill(),
                6 => return raw.hang_up(),
                7 => raw.head(id),
                8 => {
                    raw.write(b"garbage that is no frame at all, and long enough to be read as one")
                }
                9 => raw.trailers(id, "0"),
                10 => raw.message(id, b"before the head"),
                11 => raw.go_away(0, 11, "too_many_pings"),
                _ => raw.answer(id, b"fine"),
            }
        }
    });
    run(async move {
        let wild =
            BackendSettings { backoff_ms: 1, backoff_max_ms: 5, age_max_ms: 40, ..settings() };
        let mut rig = Rig::open(server.address, wild);
        let (mut ok, mut round) = (0, 0u64);
        // The number of answers between the faults depends on the machine.
        while ok < 60 || round < 60 {
            round += 1;
            let tickets: Vec<_> =
                (0..12).map(|i| rig.send(&[b'x'; 300], 20 + (round + i) % 7 * 10)).collect();
            for (i, ticket) in tickets.iter().enumerate() {
                if (i + round as usize).is_multiple_of(9) {
                    rig.channel.cancel(*ticket);
                }
            }
            for ticket in tickets {
                ok += u32::from(rig.outcome(ticket).await.is_ok());
            }
        }
        rig.close().await;
    });
}
