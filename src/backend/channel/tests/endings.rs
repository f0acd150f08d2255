//! Ends of connections: what a service does in order is told apart from what breaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::rig::{Rig, run, settings};
use super::service::{PING, Raw, serve_raw};
use crate::backend::channel::{ChannelEvent, DownCause};
use crate::config::settings::BackendSettings;
use crate::message::{CallFault, Started};

/// Causes of all losses so far.
fn causes(rig: &Rig) -> Vec<DownCause> {
    let events = rig.events.borrow();
    let cause = |event: &ChannelEvent| match event {
        ChannelEvent::Down { cause, .. } => Some(*cause),
        ChannelEvent::Up(_)
        | ChannelEvent::NotReplaced { .. }
        | ChannelEvent::Outcome(_)
        | ChannelEvent::Alive => None,
    };
    events.iter().filter_map(cause).collect()
}

/// The cause of the loss of a channel whose first connection ends by `script` after one call. No
/// other connection is greeted: after a goodbye that is read before the end, one that stood by then
/// would keep the channel up.
fn loss(script: impl Fn(Raw, u32) + Send + Sync + 'static) -> Option<DownCause> {
    let server = serve_raw(move |mut raw, index| {
        if index > 0 {
            return raw.hang_up();
        }
        raw.greet();
        if let Some(id) = raw.request() {
            script(raw, id);
        }
    });
    let found = Arc::new(std::sync::Mutex::new(None));
    let its_found = Arc::clone(&found);
    run(async move {
        let mut rig = Rig::open(server.address, settings());
        rig.until_up().await;
        let ticket = rig.send(b"hello", 10_000);
        let _ = rig.outcome(ticket).await;
        rig.until("a loss", || !causes(&rig).is_empty()).await;
        *its_found.lock().unwrap() = causes(&rig).first().copied();
        rig.close().await;
    });
    *found.lock().unwrap()
}

#[test]
fn a_service_that_says_goodbye_goes_away_and_one_that_breaks_is_broken() {
    let goodbye = loss(|mut raw, id| {
        raw.go_away(id, 0, "");
        raw.answer(id, b"finished");
        raw.hang_up();
    });
    assert_eq!(goodbye, Some(DownCause::GoneAway));
    assert_eq!(loss(|raw, _| raw.kill()), Some(DownCause::Broken));
}

#[test]
fn calls_that_a_stopping_service_cannot_finish_are_part_of_its_stop() {
    let server = serve_raw(|mut raw, index| {
        raw.greet();
        let Some(id) = raw.request() else { return };
        if index == 0 {
            raw.go_away(id, 0, "");
        }
        raw.reset(id, 2);
        raw.drain();
    });
    run(async move {
        let mut rig = Rig::open(server.address, settings());
        let stops = rig.send(b"hello", 10_000);
        let ended = rig.outcome(stops).await.unwrap_err();
        assert_eq!((ended.fault, ended.going_away), (CallFault::Reset, true));
        let breaks = rig.send(b"hello", 10_000);
        let ended = rig.outcome(breaks).await.unwrap_err();
        assert_eq!((ended.fault, ended.going_away), (CallFault::Reset, false));
        rig.close().await;
    });
}

#[test]
fn a_cancelled_stream_at_the_deadline_that_was_told_is_the_deadline() {
    // Of 1,999 ms a service is told 1,900.
    let server = serve_raw(|mut raw, _| {
        raw.greet();
        let Some(id) = raw.request() else { return };
        std::thread::sleep(std::time::Duration::from_millis(1_900));
        raw.reset(id, 8);
        raw.drain();
    });
    run(async move {
        let mut rig = Rig::open(server.address, settings());
        rig.until_up().await;
        let ticket = rig.send(b"hello", 1_999);
        let ended = rig.outcome(ticket).await.unwrap_err();
        assert_eq!(ended.fault, CallFault::TimedOut);
        rig.close().await;
    });
}

#[test]
fn a_service_that_objected_to_pings_is_pinged_less_for_ever() {
    let pings = Arc::new(AtomicUsize::new(0));
    let its_pings = Arc::clone(&pings);
    // Objects to the first ping of each connection, and answers a call after a tenth of a second.
    let server = serve_raw(move |mut raw, index| {
        raw.greet();
        let Some(id) = raw.request() else { return };
        if index > 0 {
            std::thread::sleep(std::time::Duration::from_millis(100));
            raw.answer(id, b"slow");
        }
        while let Some(frame) = raw.read() {
            if (frame.kind, frame.flags) == (PING, 0) {
                its_pings.fetch_add(1, Ordering::SeqCst);
                raw.go_away(0, 11, "too_many_pings");
                return raw.hang_up();
            }
        }
    });
    run(async move {
        let quick = BackendSettings { keepalive_ms: 20, ..settings() };
        let mut rig = Rig::open(server.address, quick.clone());
        rig.until_up().await;
        let objected = rig.send(b"hello", 10_000);
        rig.outcome(objected).await.unwrap_err();
        assert_eq!(pings.load(Ordering::SeqCst), 1);
        // The settings put in force again change nothing, nor does another connection.
        rig.channel.configure(&quick);
        let slow = rig.send(b"hello", 10_000);
        assert_eq!(rig.outcome(slow).await.unwrap(), "slow");
        assert_eq!(pings.load(Ordering::SeqCst), 1);
        rig.close().await;
    });
}

#[test]
fn nothing_more_is_sent_to_a_service_that_fell_silent_until_a_byte_comes() {
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    // Takes one call, is stopped, and answers the rest when it goes on.
    let server = serve_raw(move |mut raw, _| {
        raw.greet();
        raw.request();
        wait.lock().unwrap().recv().unwrap();
        let mut frames = 0;
        while let Some(frame) = raw.read() {
            match (frame.kind, frame.flags) {
                (PING, 0) => raw.frame(PING, 1, 0, &frame.payload),
                (1, _) => {
                    frames += 1;
                    raw.answer(frame.id, b"well");
                }
                _ => {}
            }
        }
        assert_eq!(frames, 1, "calls that came while it was stopped went elsewhere");
    });
    run(async move {
        let mut rig = Rig::open(server.address, settings());
        rig.until_up().await;
        let first = rig.send(b"hello", 1_000);
        let ended = rig.outcome(first).await.unwrap_err();
        assert_eq!((ended.fault, ended.started), (CallFault::TimedOut, Started::Maybe));
        let second = rig.send(b"hello", 10_000);
        let ended = rig.outcome(second).await.unwrap_err();
        assert_eq!((ended.fault, ended.started), (CallFault::NotConnected, Started::No));
        assert_eq!(causes(&rig), [DownCause::Silent]);
        let third = rig.send(b"hello", 10_000);
        let ended = rig.outcome(third).await.unwrap_err();
        assert_eq!((ended.fault, ended.started), (CallFault::NotConnected, Started::No));
        go_on.send(()).unwrap();
        rig.until("a sign of life", || rig.ups_and_downs() == (2, 1)).await;
        let last = rig.send(b"hello", 10_000);
        assert_eq!(rig.outcome(last).await.unwrap(), "well");
        rig.close().await;
    });
}

/// Long calls that are left on it open more slots only if the instance shows that it lives.
#[test]
fn a_connection_that_finishes_its_calls_gives_a_sign_of_life_when_asked() {
    let server = serve_raw(|mut raw, index| {
        raw.greet();
        if index > 0 {
            return raw.drain();
        }
        let Some(id) = raw.request() else { return };
        raw.go_away(id, 0, "");
        // Nothing more is said until the PING comes.
        let Some(ping) = raw.read_kind(PING) else { return };
        raw.frame(PING, 1, 0, &ping.payload);
        raw.answer(id, b"finished");
        raw.drain();
    });
    run(async move {
        let mut rig = Rig::open(server.address, settings());
        let long = rig.send(b"hello", 10_000);
        rig.until("another connection", || rig.ups_and_downs() == (2, 0)).await;
        let is_alive = || rig.events.borrow().iter().any(|e| matches!(e, ChannelEvent::Alive));
        assert!(!is_alive(), "nobody has asked");
        rig.channel.ask();
        rig.until("a sign of life", is_alive).await;
        assert_eq!(rig.outcome(long).await.unwrap(), "finished");
        rig.close().await;
    });
}
