//! When bytes arrived at this machine, by the kernel's clock: for a sample of connections, so that
//! the time is seen in which bytes lie unread, before the shard's own clock starts.
//!
//! The kernel notes the arrival of each packet as soon as one socket asks for it, which costs a
//! look at the clock a packet; and the socket is read by `recvmsg`, whose control message has the
//! time of the last byte that was read (SO_TIMESTAMPNS; Documentation/networking/timestamping.rst).

use std::io::IoSliceMut;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;

use crate::clock::unix_now;
use crate::ids::ConnId;

/// One of so many connections is in the sample: with 10,000 connections there are 150, enough for a
/// shard's percentiles, and what they cost more is a 64th.
const SAMPLED_OF: usize = 64;

/// Whether a connection is in the sample, as long as it has this id.
#[inline]
pub(super) fn is_sampled(id: ConnId) -> bool {
    id.slot().is_multiple_of(SAMPLED_OF)
}

/// Has the kernel note when bytes of a connection arrive. A kernel that does not tells no times.
pub(super) fn note(stream: &TcpStream) {
    let _ = setsockopt(stream, sockopt::ReceiveTimestampns, &true);
}

/// Receives once, without blocking: the number of bytes, and for how long the last of them has been
/// there. A step of the wall clock in between makes it unknown, or wrong by as much.
pub(super) fn receive(
    stream: &TcpStream,
    buffer: &mut [u8],
) -> Result<(usize, Option<Duration>), Errno> {
    let mut parts = [IoSliceMut::new(buffer)];
    let mut control = nix::cmsg_space!(TimeSpec);
    let flags = MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let arrived = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
        _ => None,
    });
    Ok((message.bytes, arrived.and_then(|arrived| unix_now().checked_sub(arrived))))
}
