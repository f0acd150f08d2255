//! Instances with several addresses: one of them that is dead or silent costs a moment.

use std::net::{SocketAddr, TcpListener};

use super::rig::{Rig, run, settings};
use super::service::{bind, serve_h2};
use crate::backend::channel::{ChannelEvent, DownCause};
use crate::config::settings::BackendSettings;
use crate::routing::Addresses;

/// Settings under which a failure would be waited out for longer than any test.
fn patient() -> BackendSettings {
    BackendSettings { backoff_ms: 3_600_000, connect_timeout_ms: 3_600_000, ..settings() }
}

/// An address where nothing listens.
fn nowhere() -> SocketAddr {
    bind().local_addr().unwrap()
}

fn ups(rig: &Rig) -> Vec<SocketAddr> {
    let at = |event: &ChannelEvent| match event {
        ChannelEvent::Up(address) => Some(*address),
        ChannelEvent::Down { .. }
        | ChannelEvent::NotReplaced { .. }
        | ChannelEvent::Outcome(_)
        | ChannelEvent::Alive => None,
    };
    rig.events.borrow().iter().filter_map(at).collect()
}

/// A call is answered at the last address, after those in `before`.
#[track_caller]
fn answered_after(before: &[SocketAddr]) {
    let server = serve_h2(|n| n);
    let others = before[1..].iter().copied().chain([server.address]);
    let addresses = Addresses::new(before[0], others.collect());
    run(async move {
        let mut rig = Rig::open_at(addresses, patient());
        let ticket = rig.send(b"hello", 60_000);
        assert_eq!(rig.outcome(ticket).await.unwrap(), "hello");
        assert_eq!((ups(&rig), rig.ups_and_downs()), (vec![server.address], (1, 0)));
        // An attempt that lost is given up, and does not keep the channel from its end.
        rig.close().await;
    });
}

#[test]
fn the_next_address_is_used_at_once_when_one_is_refused() {
    answered_after(&[nowhere(), nowhere()]);
}

#[test]
fn the_next_address_is_tried_beside_one_that_says_nothing() {
    let silent: TcpListener = bind();
    answered_after(&[silent.local_addr().unwrap()]);
}

#[test]
fn the_first_address_that_answers_is_used_alone() {
    let (first, second) = (serve_h2(|n| n), bind());
    run(async move {
        let addresses = Addresses::new(first.address, vec![second.local_addr().unwrap()]);
        let rig = Rig::open_at(addresses, patient());
        rig.until_up().await;
        assert_eq!(ups(&rig), [first.address]);
        second.set_nonblocking(true).unwrap();
        assert!(second.accept().is_err(), "nobody called there");
        rig.close().await;
    });
}

#[test]
fn an_instance_is_down_once_when_all_its_addresses_are() {
    run(async move {
        let last = nowhere();
        let rig = Rig::open_at(Addresses::new(nowhere(), vec![last]), patient());
        rig.until("end of the round", || rig.ups_and_downs() == (0, 1)).await;
        let events = rig.events.borrow().iter().map(|e| format!("{e:?}")).collect::<String>();
        let whys =
            [format!("{:?}", DownCause::Unreachable), format!("at {last}, the last of its 2")];
        assert!(whys.iter().all(|why| events.contains(why)), "{events}");
        rig.close().await;
    });
}
