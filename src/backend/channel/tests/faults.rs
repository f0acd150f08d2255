//! Faults of a service, one test each: there is exactly one outcome, with the right status, and
//! with the right answer to whether the call can have run.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::rig::{Rig, run, settings};
use super::service::{
    ACK, DATA, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE, bind,
    frame, serve_raw, serve_raw_at,
};
use crate::backend::framing::prefix;
use crate::config::settings::BackendSettings;
use crate::message::{CallError, CallFault, Started, status};

/// The outcome of one call that `script` answers; the script gets the call's stream.
fn failure(script: impl Fn(&mut Raw, u32) + Send + Sync + 'static) -> CallError {
    let result = Arc::new(std::sync::Mutex::new(None));
    let its_result = Arc::clone(&result);
    let server = serve_raw(move |mut raw, index| {
        raw.greet();
        if index > 0 {
            return raw.drain();
        }
        let Some(id) = raw.request() else {
            return;
        };
        script(&mut raw, id);
        raw.drain();
    });
    run(async move {
        let mut rig = Rig::open(server.address, settings());
        let ticket = rig.send(b"hello", 10_000);
        *its_result.lock().unwrap() = Some(rig.outcome(ticket).await);
        rig.close().await;
    });
    let outcome = result.lock().unwrap().take().unwrap();
    outcome.unwrap_err()
}

#[track_caller]
fn check(ended: &CallError, fault: CallFault, started: Started, code: u32) {
    assert_eq!((ended.fault, ended.started, ended.status), (fault, started, code), "{ended:?}");
}

#[test]
fn a_reset_is_told_by_its_code() {
    for (code, fault, started, expected) in [
        (7, CallFault::Refused, Started::No, status::UNAVAILABLE),
        (8, CallFault::Reset, Started::Maybe, status::CANCELLED),
        (2, CallFault::Reset, Started::Maybe, status::INTERNAL),
        (1, CallFault::Reset, Started::Maybe, status::INTERNAL),
        (0, CallFault::Reset, Started::Maybe, status::INTERNAL),
        (11, CallFault::Reset, Started::Maybe, status::RESOURCE_EXHAUSTED),
        (12, CallFault::Reset, Started::Maybe, status::PERMISSION_DENIED),
    ] {
        check(&failure(move |raw, id| raw.reset(id, code)), fault, started, expected);
    }
}

#[test]
fn a_reset_within_the_response_may_have_run() {
    let ended = failure(|raw, id| {
        raw.head(id);
        raw.message(id, b"half");
        raw.reset(id, 8);
    });
    check(&ended, CallFault::Reset, Started::Maybe, status::CANCELLED);
}

#[test]
fn a_call_above_the_last_stream_of_goaway_did_not_run() {
    let ended = failure(|raw, _| raw.go_away(0, 0, ""));
    check(&ended, CallFault::GoingAway, Started::No, status::UNAVAILABLE);
}

#[test]
fn a_call_below_goaway_is_lost_with_the_connection() {
    for kill in [false, true] {
        let server = serve_raw(move |mut raw, index| {
            raw.greet();
            if index > 0 {
                return raw.drain();
            }
            if let Some(id) = raw.request() {
                raw.go_away(id, 0, "");
                if kill { raw.kill() } else { raw.hang_up() }
            }
        });
        run(async move {
            let mut rig = Rig::open(server.address, settings());
            let ticket = rig.send(b"hello", 10_000);
            let ended = rig.outcome(ticket).await.unwrap_err();
            check(&ended, CallFault::ConnectionLost, Started::Maybe, status::UNAVAILABLE);
            rig.close().await;
        });
    }
}

#[test]
fn a_graceful_goaway_ends_no_call_and_new_calls_take_a_new_connection() {
    let server = serve_raw(|mut raw, index| {
        raw.greet();
        let Some(id) = raw.request() else {
            return;
        };
        if index == 0 {
            raw.go_away(0x7fff_ffff, 0, "");
            raw.go_away(id, 0, "");
            // The second call must not come here; the end of this PING's answer proves that the
            // client has read the GOAWAYs.
            raw.frame(PING, 0, 0, &[0; 8]);
            assert!(raw.read_kind(PING).is_some_and(|f| f.flags & ACK != 0));
        }
        raw.answer(id, if index == 0 { b"old" } else { b"new" });
        assert!(raw.read_kind(HEADERS).is_none(), "a call after GOAWAY");
    });
    run(async move {
        let mut rig = Rig::open(server.address, settings());
        let first = rig.send(b"1", 10_000);
        assert_eq!(rig.outcome(first).await.unwrap(), "old");
        let second = rig.send(b"2", 10_000);
        assert_eq!(rig.outcome(second).await.unwrap(), "new");
        assert_eq!(rig.ups_and_downs(), (2, 0));
        rig.close().await;
    });
}

#[test]
fn a_connection_that_breaks_with_calls_in_flight_loses_them_all_once() {
    for kill in [false, true] {
        let server = serve_raw(move |mut raw, index| {
            raw.greet();
            if index > 0 {
                while let Some(id) = raw.request() {
                    raw.answer(id, b"again");
                }
                return;
            }
            for _ in 0..50 {
                raw.request();
            }
            if kill { raw.kill() } else { raw.hang_up() }
        });
        run(async move {
            let mut rig = Rig::open(server.address, settings());
            let tickets: Vec<_> = (0..50).map(|_| rig.send(&[7; 1_000], 10_000)).collect();
            for ticket in tickets {
                let ended = rig.outcome(ticket).await.unwrap_err();
                check(&ended, CallFault::ConnectionLost, Started::Maybe, status::UNAVAILABLE);
            }
            rig.until_up().await;
            let ticket = rig.send(b"x", 10_000);
            assert_eq!(rig.outcome(ticket).await.unwrap(), "again");
            rig.close().await;
        });
    }
}

#[test]
fn a_silent_service_costs_the_deadline_and_its_late_answer_is_ignored() {
    let server = serve_raw(|mut raw, _| {
        raw.greet();
        let Some(id) = raw.request() else {
            return;
        };
        let reset = raw.read_kind(RST_STREAM).unwrap();
        assert_eq!((reset.id, &reset.payload[..]), (id, &8u32.to_be_bytes()[..]));
        raw.answer(id, b"late");
        while let Some(id) = raw.request() {
            raw.answer(id, b"in time");
        }
    });
    run(async move {
        let mut rig = Rig::open(server.address, settings());
        let ticket = rig.send(b"hello", 100);
        let ended = rig.outcome(ticket).await.unwrap_err();
        check(&ended, CallFault::TimedOut, Started::Maybe, status::DEADLINE_EXCEEDED);
        let ticket = rig.send(b"hello", 10_000);
        assert_eq!(rig.outcome(ticket).await.unwrap(), "in time");
        assert_eq!(rig.ups_and_downs(), (1, 0));
        rig.close().await;
    });
}

#[test]
fn a_response_without_trailers_is_unknown() {
    let ended = failure(|raw, id| {
        raw.head(id);
        raw.frame(DATA, END_STREAM, id, &[&prefix(1)[..], b"x"].concat());
    });
    check(&ended, CallFault::BadReply, Started::Maybe, status::UNKNOWN);
}

#[test]
fn an_http_error_is_mapped() {
    for (code, expected) in
        [("503", status::UNAVAILABLE), ("429", status::UNAVAILABLE), ("404", status::UNIMPLEMENTED)]
    {
        let ended = failure(move |raw, id| raw.headers(id, &[(":status", code)], END_STREAM));
        check(&ended, CallFault::Status, Started::Maybe, expected);
    }
}

#[test]
fn a_web_page_is_not_an_answer() {
    let ended = failure(|raw, id| {
        raw.headers(id, &[(":status", "200"), ("content-type", "text/html")], 0);
        raw.frame(DATA, END_STREAM, id, b"<html>");
    });
    check(&ended, CallFault::BadReply, Started::Maybe, status::UNKNOWN);
}

#[test]
fn a_body_that_is_not_one_message_is_a_bad_reply() {
    let bodies: [(&[u8], u32); 5] = [
        (&[0, 0, 0, 0, 9, 1, 2], status::INTERNAL),
        (&[], status::INTERNAL),
        (&[1, 0, 0, 0, 1, 1], status::INTERNAL),
        (&[0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1], status::INTERNAL),
        (&[9, 9], status::INTERNAL),
    ];
    for (body, expected) in bodies {
        let ended = failure(move |raw, id| {
            raw.head(id);
            raw.frame(DATA, 0, id, body);
            raw.trailers(id, "0");
        });
        check(&ended, CallFault::BadReply, Started::Maybe, expected);
    }
}

#[test]
fn an_answer_that_is_larger_than_allowed_is_told_with_the_bound() {
    let ended = failure(|raw, id| {
        raw.head(id);
        raw.frame(DATA, 0, id, &[0, 255, 255, 255, 255, 1]);
        raw.trailers(id, "0");
    });
    check(&ended, CallFault::TooLarge, Started::Maybe, status::RESOURCE_EXHAUSTED);
    assert!(ended.message.contains("larger than 1048576 bytes"), "{}", ended.message);
}

#[test]
fn an_answer_that_the_service_compressed_is_read_and_an_unknown_encoding_named() {
    let answer = |encoding: &'static str| {
        let server = serve_raw(move |mut raw, _| {
            raw.greet();
            let Some(id) = raw.request() else { return };
            let head = [(":status", "200"), ("content-type", "application/grpc")];
            raw.headers(id, &[&head[..], &[("grpc-encoding", encoding)]].concat(), 0);
            let mut gzip =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            std::io::Write::write_all(&mut gzip, b"hello").unwrap();
            let packed = gzip.finish().unwrap();
            let mut message = vec![1, 0, 0, 0, packed.len() as u8];
            message.extend_from_slice(&packed);
            raw.frame(DATA, 0, id, &message);
            raw.trailers(id, "0");
            raw.drain();
        });
        let mut result = None;
        run(async {
            let mut rig = Rig::open(server.address, settings());
            let ticket = rig.send(b"x", 5_000);
            result = Some(rig.outcome(ticket).await);
            rig.close().await;
        });
        result.expect("the call ended")
    };
    assert_eq!(answer("gzip").unwrap(), "hello");
    let refused = answer("snappy").unwrap_err();
    check(&refused, CallFault::BadReply, Started::Maybe, status::INTERNAL);
    assert!(refused.message.contains("snappy"), "{}", refused.message);
}

#[test]
fn a_service_error_is_passed_on_with_its_words() {
    let ended = failure(|raw, id| {
        raw.head(id);
        raw.headers(
            id,
            &[("grpc-status", "8"), ("grpc-message", "full%21"), ("grpc-retry-pushback-ms", "70")],
            END_STREAM,
        );
    });
    check(&ended, CallFault::Status, Started::Maybe, status::RESOURCE_EXHAUSTED);
    assert_eq!((ended.message.as_str(), ended.pushback), ("full!", Some(Some(70))));
}

#[test]
fn trailers_alone_end_a_call() {
    for (grpc_status, fault, expected) in [
        ("5", CallFault::Status, status::NOT_FOUND),
        ("abc", CallFault::BadReply, status::UNKNOWN),
        ("0", CallFault::BadReply, status::INTERNAL),
    ] {
        let ended = failure(move |raw, id| {
            let grpc = ("content-type", "application/grpc");
            let fields = [(":status", "200"), grpc, ("grpc-status", grpc_status)];
            raw.headers(id, &fields, END_STREAM);
        });
        check(&ended, fault, Started::Maybe, expected);
    }
}

#[test]
fn a_flood_of_settings_and_pings_is_survived() {
    let server = serve_raw(|mut raw, _| {
        raw.greet();
        let Some(id) = raw.request() else {
            return;
        };
        let mut reader = Raw { stream: raw.stream.try_clone().unwrap() };
        // The client's acknowledgements must be read, or both sides wait for ever.
        let taken =
            std::thread::spawn(move || std::io::copy(&mut reader.stream, &mut std::io::sink()));
        let flood = [frame(SETTINGS, 0, 0, &[]), frame(PING, 0, 0, &[1; 8])].concat();
        for _ in 0..200 {
            raw.write(&flood.repeat(50));
        }
        raw.answer(id, b"done");
        let _ = taken.join();
    });
    run(async move {
        let mut rig = Rig::open(server.address, settings());
        let ticket = rig.send(b"hello", 15_000);
        assert_eq!(rig.outcome(ticket).await.unwrap(), "done");
        rig.close().await;
    });
}

#[test]
fn bytes_that_are_not_http2_break_the_connection_and_nothing_else() {
    // The connection's window overflows. (h2 does not check the window of a stream whose request
    // was sent.)
    let ended = failure(|raw, _| raw.frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes()));
    check(&ended, CallFault::BadReply, Started::Maybe, status::INTERNAL);
    // A frame larger than the channel allows.
    let ended = failure(|raw, id| raw.write(&frame(DATA, 0, id, &vec![0; 1 << 20])));
    check(&ended, CallFault::BadReply, Started::Maybe, status::INTERNAL);
    // A header list larger than the channel allows.
    let huge = "x".repeat(120);
    let ended = failure(move |raw, id| {
        let fields = [(":status", "200")].into_iter().chain((0..200).map(|_| ("a", &*huge)));
        raw.headers(id, &fields.collect::<Vec<_>>(), END_STREAM);
    });
    assert_eq!((ended.fault, ended.started), (CallFault::BadReply, Started::Maybe), "{ended:?}");
}

#[test]
fn a_server_of_another_protocol_is_no_connection() {
    let server = serve_raw(|mut raw, _| {
        raw.write(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        raw.drain();
    });
    run(async move {
        let mut rig = Rig::open(server.address, settings());
        let ticket = rig.send(b"hello", 10_000);
        let ended = rig.outcome(ticket).await.unwrap_err();
        check(&ended, CallFault::NotConnected, Started::No, status::UNAVAILABLE);
        rig.close().await;
    });
}

#[test]
fn a_server_that_never_greets_is_given_up_and_its_calls_did_not_run() {
    let server = serve_raw(|mut raw, _| raw.drain());
    run(async move {
        let mut rig =
            Rig::open(server.address, BackendSettings { connect_timeout_ms: 50, ..settings() });
        let ticket = rig.send(b"hello", 10_000);
        let ended = rig.outcome(ticket).await.unwrap_err();
        check(&ended, CallFault::NotConnected, Started::No, status::UNAVAILABLE);
        rig.close().await;
    });
}

#[test]
fn calls_fail_at_once_while_the_server_is_down_and_work_when_it_is_up() {
    let listener = bind();
    let address = listener.local_addr().unwrap();
    drop(listener);
    run(async move {
        let slow = BackendSettings { backoff_ms: 500, backoff_max_ms: 500, ..settings() };
        let mut rig = Rig::open(address, slow);
        let first = rig.send(b"hello", 60_000);
        let ended = rig.outcome(first).await.unwrap_err();
        check(&ended, CallFault::NotConnected, Started::No, status::UNAVAILABLE);
        let second = rig.send(b"hello", 60_000);
        let ended = rig.outcome(second).await.unwrap_err();
        check(&ended, CallFault::NotConnected, Started::No, status::UNAVAILABLE);
        let (ups, downs) = rig.ups_and_downs();
        assert!(ups == 0 && downs >= 1 && !rig.channel.is_up());
        let server = serve_raw_at(std::net::TcpListener::bind(address).unwrap(), |mut raw, _| {
            raw.greet();
            while let Some(id) = raw.request() {
                raw.answer(id, b"up");
            }
        });
        rig.until_up().await;
        let third = rig.send(b"hello", 10_000);
        assert_eq!(rig.outcome(third).await.unwrap(), "up");
        rig.close().await;
        drop(server);
    });
}

#[test]
fn a_cancelled_call_is_reset_and_told_once() {
    let server = serve_raw(|mut raw, _| {
        raw.greet();
        let Some(id) = raw.request() else {
            return;
        };
        let reset = raw.read_kind(RST_STREAM).unwrap();
        assert_eq!((reset.id, &reset.payload[..]), (id, &8u32.to_be_bytes()[..]));
        raw.answer(id, b"late");
        raw.drain();
    });
    run(async move {
        let mut rig = Rig::open(server.address, settings());
        let waits = rig.send(b"hello", 10_000);
        rig.channel.cancel(waits);
        rig.channel.cancel(waits);
        let ended = rig.outcome(waits).await.unwrap_err();
        check(&ended, CallFault::TimedOut, Started::No, status::CANCELLED);
        rig.until_up().await;
        let runs = rig.send(b"hello", 10_000);
        glommio::executor().yield_task_queue_now().await;
        rig.channel.cancel(runs);
        let ended = rig.outcome(runs).await.unwrap_err();
        assert_eq!((ended.fault, ended.status), (CallFault::TimedOut, status::CANCELLED));
        rig.close().await;
    });
}

#[test]
fn closing_finishes_what_is_in_flight_and_refuses_what_comes_later() {
    let server = serve_raw(|mut raw, _| {
        raw.greet();
        let ids: Vec<_> = (0..3).map_while(|_| raw.request()).collect();
        for id in ids {
            raw.answer(id, b"finished");
        }
        assert!(raw.read_kind(GOAWAY).is_some());
    });
    run(async move {
        let mut rig = Rig::open(server.address, settings());
        rig.until_up().await;
        let tickets: Vec<_> = (0..3).map(|_| rig.send(b"hello", 10_000)).collect();
        glommio::executor().yield_task_queue_now().await;
        let channel = rig.channel.clone();
        channel.close();
        let refused = rig.send(b"late", 10_000);
        let ended = rig.outcome(refused).await.unwrap_err();
        check(&ended, CallFault::NotConnected, Started::No, status::UNAVAILABLE);
        for ticket in tickets {
            assert_eq!(rig.outcome(ticket).await.unwrap(), "finished");
        }
        rig.until_ended().await;
        let after = rig.send(b"after the end", 10_000);
        let ended = rig.outcome(after).await.unwrap_err();
        check(&ended, CallFault::NotConnected, Started::No, status::UNAVAILABLE);
        rig.close().await;
    });
}

#[test]
fn an_unanswered_ping_ends_a_dead_connection() {
    let pings = Arc::new(AtomicUsize::new(0));
    let its_pings = Arc::clone(&pings);
    let server = serve_raw(move |mut raw, index| {
        raw.greet();
        if index == 0 {
            while let Some(frame) = raw.read() {
                its_pings.fetch_add(
                    usize::from((frame.kind, frame.flags) == (PING, 0)),
                    Ordering::SeqCst,
                );
            }
        }
        raw.drain();
    });
    run(async move {
        let quick = BackendSettings { keepalive_ms: 30, keepalive_timeout_ms: 40, ..settings() };
        let mut rig = Rig::open(server.address, quick);
        let ticket = rig.send(b"hello", 10_000);
        let ended = rig.outcome(ticket).await.unwrap_err();
        check(&ended, CallFault::ConnectionLost, Started::Maybe, status::UNAVAILABLE);
        rig.close().await;
    });
    assert_eq!(pings.load(Ordering::SeqCst), 1);
}

#[test]
fn an_answered_ping_keeps_a_slow_call_alive() {
    let server = serve_raw(|mut raw, _| {
        raw.greet();
        let Some(id) = raw.request() else {
            return;
        };
        for _ in 0..3 {
            let Some(ping) = raw.read_kind(PING) else {
                return;
            };
            raw.frame(PING, ACK, 0, &ping.payload);
        }
        raw.answer(id, b"slow");
        raw.drain();
    });
    run(async move {
        let quick = BackendSettings { keepalive_ms: 30, keepalive_timeout_ms: 5_000, ..settings() };
        let mut rig = Rig::open(server.address, quick);
        let ticket = rig.send(b"hello", 10_000);
        assert_eq!(rig.outcome(ticket).await.unwrap(), "slow");
        rig.close().await;
    });
}

#[test]
fn an_old_connection_is_replaced_without_a_call_noticing() {
    let server = serve_raw(|mut raw, _| {
        raw.greet();
        while let Some(id) = raw.request() {
            raw.answer(id, b"x");
        }
    });
    run(async move {
        let mut rig = Rig::open(server.address, BackendSettings { age_max_ms: 30, ..settings() });
        while rig.ups_and_downs().0 < 3 {
            let ticket = rig.send(b"hello", 10_000);
            assert_eq!(rig.outcome(ticket).await.unwrap(), "x");
        }
        assert_eq!(rig.ups_and_downs().1, 0);
        rig.close().await;
    });
}
