//! The work that bytes of clients cost, in units of about a nanosecond of a core. A turn's reading
//! is bounded by work, and divided by it between connections: a buffer of 64 KiB can be one message
//! that is passed on in 100 us, or 10,922 pings.

use crate::message::Category;
use crate::wire::frames::FrameEvent;

/// The work that may still be done for a connection now. The engine charges what a client's bytes
/// cost, and stops decoding when nothing is left: at the end of a frame, so that it can cost a
/// message more than was allowed.
///
/// Where a figure below is called measured, it was so with one client that sends nothing else at
/// full speed to a release build: the processor time of the shard, divided by the messages. The
/// others are estimates from profiles. On another processor they are
/// all wrong by about the same factor, which changes how long a turn may get, but not who gets how
/// much of it; and the shard looks at its clock, too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Work {
    left: i64,
}

/// As much as no connection costs.
impl Default for Work {
    fn default() -> Self {
        Self { left: i64::MAX }
    }
}

/// Units in a microsecond.
const UNITS_PER_US: u64 = 1_000;
/// Cost of a receive: the system call and all around it, without its bytes.
const RECEIVE: i64 = 2_000;
/// Cost of the end of a connection: the socket is shut and closed, and its state is forgotten. An
/// estimate, as of some ten system calls.
pub(crate) const CLOSE: i64 = 15_000;
/// Bytes that cost a unit to receive, unmask and keep: 16 us for 64 KiB.
const BYTES_RECEIVED: usize = 4;
/// Cost of a write to a socket at the end of a turn, by a connection that has something new to be
/// sent. On loopback the receiver's side of TCP is part of it.
pub(crate) const FLUSH: i64 = 6_000;
/// Bytes that cost a unit to send: about as many as of those that are received.
const BYTES_SENT: usize = 4;
/// Cost of a record of TLS, without its bytes.
const RECORD: i64 = 500;
/// Bytes of records that cost a unit to decrypt and copy: 8 us for 16 KiB.
const BYTES_DECRYPTED: usize = 2;
/// Cost of an upgrade: the request is read, the 101 and the `welcome` are written.
pub(super) const UPGRADE: i64 = 15_000;
/// Cost of a frame that completes no message: it is put by.
pub(super) const FRAGMENT: i64 = 80;
/// Cost of the header of a frame that completes one.
const FRAME: i64 = 25;
/// Cost of the answer to a ping. Measured with its frame: 55 to 72.
const PONG: i64 = 40;
/// Cost of a message's decoding, without its bytes, and of what each message passes.
const MESSAGE: i64 = 80;
/// Cost of a byte of JSON: between 1.4 (a long string) and 6.5 (numbers, or empty arrays), all from
/// the receive to a one-way echo, in messages of 64 KiB. Whoever sends long strings is charged as
/// the worst, which costs it some rounds beside those that flood.
const JSON_BYTE: i64 = 6;
/// Cost of a system message besides [`MESSAGE`]. Measured: 190 to 226 for a `heartbeat`, which
/// comes to 231 + 50 here, 296 for a `ping`, which comes to 195 + 50.
const SYSTEM: i64 = 50;
/// Cost of a message that the gateway answers. Measured: 313 to 367 for 9002 in protobuf.
const GATEWAY: i64 = 200;
/// Cost of a message that is admitted: its way to the service and back, of which most comes after
/// the reading but in the same turns. Measured: 890 to 1,200, all in all.
const BUSINESS: i64 = 700;
/// Cost of a message that is refused. Measured: 189 to 256 for one without a route.
const REFUSED: i64 = 50;
/// Cost of what is no message of this protocol: it is read twice, to say what is wrong.
pub(super) const BAD_MESSAGE: i64 = 500;

/// The work that fits in `us`.
pub(crate) fn of_time(us: u64) -> i64 {
    (us * UNITS_PER_US) as i64
}

/// Cost of a receive of so many bytes, which may be none.
#[inline]
pub fn of_receive(bytes: usize) -> i64 {
    RECEIVE + (bytes / BYTES_RECEIVED) as i64
}

/// Cost of a send of so many bytes.
#[inline]
pub(super) fn of_send(bytes: usize) -> i64 {
    FLUSH + (bytes / BYTES_SENT) as i64
}

/// Cost of so many records of TLS, with so many bytes in them.
#[inline]
pub(crate) fn of_records(records: u32, bytes: usize) -> i64 {
    i64::from(records) * RECORD + (bytes / BYTES_DECRYPTED) as i64
}

/// Cost of a frame, and of decoding the message that it completes.
#[inline]
pub(super) fn of_frame(event: &FrameEvent<'_>) -> i64 {
    match event {
        FrameEvent::Text(text) => FRAME + MESSAGE + text.len() as i64 * JSON_BYTE,
        FrameEvent::Binary(bytes) => FRAME + MESSAGE + bytes.len() as i64,
        FrameEvent::Ping(_) => FRAME + PONG,
        FrameEvent::Pong | FrameEvent::Close { .. } => FRAME,
    }
}

/// Cost of what was done about a message.
#[inline]
pub(super) fn of_message(category: Category, is_refused: bool) -> i64 {
    match category {
        _ if is_refused => REFUSED,
        Category::System => SYSTEM,
        Category::Gateway => GATEWAY,
        Category::Business => BUSINESS,
    }
}

impl Work {
    /// Allows so many units, whatever was left.
    #[inline]
    pub fn allow(&mut self, units: i64) {
        self.left = units;
    }

    /// Takes off what something has cost.
    #[inline]
    pub fn charge(&mut self, units: i64) {
        self.left -= units;
    }

    /// Units that are left; below 0 if the last step cost more than was.
    #[inline]
    pub fn left(&self) -> i64 {
        self.left
    }

    /// Whether nothing is left.
    #[inline]
    pub fn is_spent(&self) -> bool {
        self.left <= 0
    }
}
