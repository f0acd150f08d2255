//! The channel against real sockets: a well-behaved HTTP/2 server, and one that is scripted frame by
//! frame for everything that a server should not do.

mod faults;
mod rig;
mod service;

use self::rig::{Rig, run, settings};
use self::service::{serve_h2, serve_raw};

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
