//! The pushes of a group as its members on a shard read them: a log that each reads at its own
//! place, and frames that are encoded once for all of them.
//!
//! A place is a number of this log alone: it rises by one with each push, also with those that have
//! no offset. A member's *cursor* is the place of the next push that it is to get, so nothing of a
//! push is kept for a member, and delivery, a slow client and one that comes back are one thing.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use hashbrown::HashMap;

use crate::message::{Encoding, Micros};
use crate::push::{Body, Excepted, Kind, Position};

/// Bytes that a push takes beside its payload: its body, its place in the log and in an index.
pub const PUSH_OVERHEAD_BYTES: usize = 256;
/// Bytes of frames after which a new segment begins. A whole send takes no more, and the memory of
/// a segment is given back at once.
const SEGMENT_BYTES: usize = 16 << 10;
/// Bytes of frames that are kept encoded. Members further behind are served one by one.
const ARENA_BYTES_MAX: usize = 64 << 10;

/// The part of a log that is kept beside what its members still have to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retention {
    /// Bytes of pushes with their overhead.
    pub bytes: usize,
    /// Age of a push, in microseconds.
    pub us: u64,
}

/// Whether a newer push of its key has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Superseded {
    No,
    /// One that leaves some members out, or is not delivered any more from some time on: who does
    /// not get the newest of its key gets this one.
    ForSome,
    ForAll,
}

/// A push of the log.
#[derive(Debug)]
pub struct Entry {
    /// Number in the group; 0 of one that is not kept.
    pub offset: u64,
    /// The content.
    pub body: Arc<Body>,
    /// Time at which it came.
    pub since: Micros,
    superseded: Superseded,
}

/// Facts about a member that decide what it gets.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    /// Public id of its session.
    pub session: &'a str,
    /// Name of its user, if it has one.
    pub user: Option<&'a str>,
    /// Encoding of its connection.
    pub encoding: Encoding,
    /// Whether it is told who comes and goes.
    pub wants_presence: bool,
}

/// The next thing for a member, behind what it is not to get.
#[derive(PartialEq, Eq, Debug)]
pub enum Next<'a> {
    /// Nothing is left to read; its cursor is at the end.
    End,
    /// Pushes from `first` on are left; what was before it is lost for this member.
    Missed {
        /// Place at which it goes on.
        first: u64,
    },
    /// Frames that lie together.
    Frames {
        /// Their bytes.
        bytes: &'a [u8],
        /// Place of the first.
        from: u64,
        /// Place behind the last.
        to: u64,
    },
    /// One push that is to be encoded for this member alone.
    Single {
        /// Its place.
        place: u64,
    },
}

/// Frames of pushes in one encoding, as they go on the wire.
#[derive(Debug, Default)]
struct Arena {
    segments: VecDeque<Segment>,
    bytes: usize,
}

#[derive(Debug)]
struct Segment {
    /// Place of the first frame.
    first: u64,
    bytes: Vec<u8>,
    /// End of each frame.
    ends: Vec<u32>,
}

impl Segment {
    /// Place behind the last frame.
    fn end(&self) -> u64 {
        self.first + self.ends.len() as u64
    }

    /// Where the frame of `place` begins, which may be the one behind the last.
    fn start_of(&self, place: u64) -> usize {
        match (place - self.first) as usize {
            0 => 0,
            n => self.ends[n - 1] as usize,
        }
    }
}

impl Arena {
    /// Place of the first frame, and the one behind the last.
    fn range(&self) -> Option<(u64, u64)> {
        Some((self.segments.front()?.first, self.segments.back()?.end()))
    }

    fn append(&mut self, place: u64, encode: impl FnOnce(&mut Vec<u8>)) {
        let fits = |segment: &Segment| segment.bytes.len() < SEGMENT_BYTES;
        if !self.segments.back().is_some_and(fits) {
            self.segments.push_back(Segment { first: place, bytes: Vec::new(), ends: Vec::new() });
        }
        let segment = self.segments.back_mut().expect("just made");
        debug_assert_eq!(segment.end(), place, "frames lie together");
        let before = segment.bytes.len();
        encode(&mut segment.bytes);
        // A frame is at most 16 MiB, and a segment ends with the one that passes its size.
        segment.ends.push(segment.bytes.len() as u32);
        self.bytes += segment.bytes.len() - before;
        while self.bytes > ARENA_BYTES_MAX && self.segments.len() > 1 {
            self.drop_front();
        }
    }

    fn drop_front(&mut self) {
        if let Some(segment) = self.segments.pop_front() {
            self.bytes -= segment.bytes.len();
        }
    }

    /// Drops whole segments of pushes before `first`.
    fn trim(&mut self, first: u64) {
        while self.segments.front().is_some_and(|segment| segment.end() <= first) {
            self.drop_front();
        }
    }

    /// The segment with the frame of `place`.
    fn segment(&self, place: u64) -> Option<&Segment> {
        // Mostly the last one.
        self.segments.iter().rev().find(|s| (s.first..s.end()).contains(&place))
    }

    fn clear(&mut self) {
        *self = Self::default();
    }

    fn memory_bytes(&self) -> usize {
        self.segments.iter().map(|s| s.bytes.capacity() + 4 * s.ends.capacity()).sum()
    }
}

/// The log of a group on a shard.
#[derive(Debug)]
pub struct Log {
    entries: VecDeque<Entry>,
    /// Place of the oldest entry; of the next one if there is none.
    first: u64,
    /// Bytes of the entries with their overhead.
    bytes: usize,
    arenas: [Arena; 2],
    /// Places of those that not every member gets: superseded, with exceptions, with an end, or
    /// about people.
    special: BTreeSet<u64>,
    /// Place of the newest push of each key.
    keys: HashMap<Box<str>, u64>,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            // A cursor of 0 is before everything.
            first: 1,
            bytes: 0,
            arenas: [Arena::default(), Arena::default()],
            special: BTreeSet::new(),
            keys: HashMap::new(),
        }
    }
}

impl Log {
    /// Place of the oldest push.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Place of the next push that comes.
    pub fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Bytes of the pushes with their overhead.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of the pushes from `place` on.
    pub fn bytes_from(&self, place: u64) -> usize {
        let skip = place.saturating_sub(self.first) as usize;
        self.entries.iter().skip(skip).map(|entry| cost(&entry.body)).sum()
    }

    /// Bytes of memory of frames.
    pub fn arena_bytes(&self) -> usize {
        self.arenas.iter().map(Arena::memory_bytes).sum()
    }

    /// The push at `place`.
    pub fn get(&self, place: u64) -> Option<&Entry> {
        self.entries.get(place.checked_sub(self.first)? as usize)
    }

    /// The pushes, the oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Appends a push. Returns whether it replaces one that is still here.
    pub fn push(&mut self, offset: u64, body: Arc<Body>, since: Micros) -> bool {
        let place = self.end();
        let mut replaces = false;
        if !body.key.is_empty()
            && let Some(older) = self.keys.insert(body.key.clone(), place)
            && let Some(entry) = self.entries.get_mut(older.saturating_sub(self.first) as usize)
            && older >= self.first
        {
            entry.superseded = match is_for_all(&body) {
                true => Superseded::ForAll,
                false => Superseded::ForSome,
            };
            replaces = true;
            self.special.insert(older);
        }
        if !is_for_all(&body) {
            self.special.insert(place);
        }
        self.bytes += cost(&body);
        self.entries.push_back(Entry { offset, body, since, superseded: Superseded::No });
        replaces
    }

    /// Drops the oldest pushes beyond what is kept.
    pub fn trim(&mut self, retention: Retention, now: Micros) {
        while let Some(entry) = self.entries.front() {
            if self.bytes <= retention.bytes && now.since(entry.since) < retention.us {
                break;
            }
            self.drop_oldest();
        }
        self.arenas.iter_mut().for_each(|arena| arena.trim(self.first));
    }

    /// Drops everything, and the `missing` pushes that never came here: whoever has read to the
    /// end has missed as many.
    pub fn skip(&mut self, missing: u64) {
        self.first = self.end() + missing;
        self.bytes = 0;
        self.entries.clear();
        self.special.clear();
        self.keys.clear();
        self.drop_frames();
    }

    /// Drops the encoded frames, which are made again when somebody reads them.
    pub fn drop_frames(&mut self) {
        self.arenas.iter_mut().for_each(Arena::clear);
    }

    fn drop_oldest(&mut self) {
        let Some(entry) = self.entries.pop_front() else { return };
        self.bytes -= cost(&entry.body);
        self.special.remove(&self.first);
        if self.keys.get(&entry.body.key) == Some(&self.first) {
            self.keys.remove(&entry.body.key);
        }
        self.first += 1;
    }

    /// Place behind the push with this offset, if everything after it is here: the cursor of a
    /// member that has that.
    pub fn place_after(&self, offset: u64, last: u64) -> Option<u64> {
        if offset >= last {
            return (offset == last).then(|| self.end());
        }
        // Offsets rise, and those without one lie between them.
        let first_kept = self.entries.iter().find(|entry| entry.offset > 0)?;
        if first_kept.offset > offset + 1 {
            return None;
        }
        let behind = self.entries.iter().rposition(|e| e.offset > 0 && e.offset <= offset);
        Some(self.first + behind.map_or(0, |n| n as u64 + 1))
    }

    /// Frames from `at` on for `reader`, made by `encode` if they are not there yet.
    pub fn next(
        &mut self,
        at: u64,
        reader: &Reader<'_>,
        now: Micros,
        mut encode: impl FnMut(&mut Vec<u8>, &Entry),
    ) -> Next<'_> {
        if at < self.first {
            return Next::Missed { first: self.first };
        }
        let Some(from) = self.first_for(at, reader, now) else { return Next::End };
        let until = self.next_not_for(from + 1, reader, now);
        let Self { entries, first, arenas, .. } = self;
        let arena = &mut arenas[reader.encoding as usize];
        let end = *first + entries.len() as u64;
        let begin = match arena.range() {
            Some((first, _)) if from < first => return Next::Single { place: from },
            Some((_, behind)) => behind,
            None => from,
        };
        for place in begin..end {
            let entry = &entries[(place - *first) as usize];
            arena.append(place, |out| encode(out, entry));
        }
        match arena.segment(from) {
            // So much was made at once that the first of it went.
            None => Next::Single { place: from },
            Some(segment) => {
                let to = until.min(segment.end());
                let bytes = &segment.bytes[segment.start_of(from)..segment.start_of(to)];
                Next::Frames { bytes, from, to }
            }
        }
    }

    /// Frames that [`Self::next`] has found.
    pub fn frames(&self, from: u64, to: u64, encoding: Encoding) -> &[u8] {
        let segment = self.arenas[encoding as usize].segment(from);
        segment.map_or(&[], |segment| &segment.bytes[segment.start_of(from)..segment.start_of(to)])
    }

    /// Whether any of the pushes has a key.
    pub fn has_keys(&self) -> bool {
        !self.keys.is_empty()
    }

    /// The place in the group's pushes of a member with this cursor; `last`: that at the end.
    pub fn position_before(&self, at: u64, last: Position) -> Position {
        let skip = at.saturating_sub(self.first) as usize;
        let next = self.entries.iter().skip(skip).find(|entry| entry.offset > 0);
        next.map_or(last, |entry| Position { offset: entry.offset - 1, ..last })
    }

    /// Of frames from `from` on of which `sent` bytes were sent: the place behind the last that was
    /// begun, and the bytes of that one which are left.
    pub fn cut(&self, from: u64, sent: usize, encoding: Encoding) -> Option<(u64, &[u8])> {
        let segment = self.arenas[encoding as usize].segment(from)?;
        let sent_to = segment.start_of(from) + sent;
        let ends = &segment.ends[(from - segment.first) as usize..];
        let whole = ends.partition_point(|end| (*end as usize) <= sent_to);
        let begun = from + whole as u64;
        if begun == segment.end() || segment.start_of(begun) == sent_to {
            return Some((begun, &[]));
        }
        let end = segment.ends[(begun - segment.first) as usize] as usize;
        Some((begun + 1, &segment.bytes[sent_to..end]))
    }

    /// The first place from `at` on that is for `reader`.
    fn first_for(&self, at: u64, reader: &Reader<'_>, now: Micros) -> Option<u64> {
        let mut place = at;
        for special in self.special.range(at..) {
            if *special != place || self.is_for(place, reader, now) {
                break;
            }
            place += 1;
        }
        (place < self.end()).then_some(place)
    }

    /// The first place from `at` on that is not for `reader`, or the end.
    fn next_not_for(&self, at: u64, reader: &Reader<'_>, now: Micros) -> u64 {
        let specials = self.special.range(at..);
        let not_for = |place: &&u64| !self.is_for(**place, reader, now);
        specials.into_iter().find(not_for).copied().unwrap_or_else(|| self.end())
    }

    fn is_for(&self, place: u64, reader: &Reader<'_>, now: Micros) -> bool {
        self.get(place).is_some_and(|entry| {
            let is_wanted = match entry.body.kind {
                Kind::Push => !is_excepted(&entry.body, reader),
                Kind::Presence(_) => reader.wants_presence,
            };
            let is_replaced = match entry.superseded {
                Superseded::No => false,
                Superseded::ForSome => self.has_newer_for(entry, reader, now),
                Superseded::ForAll => true,
            };
            is_wanted && !is_replaced && entry.body.expires > now
        })
    }

    /// Whether the newest push of the key of `entry` is for `reader`.
    fn has_newer_for(&self, entry: &Entry, reader: &Reader<'_>, now: Micros) -> bool {
        let newest = self.keys.get(&entry.body.key).and_then(|place| self.get(*place));
        newest.is_some_and(|newest| newest.body.expires > now && !is_excepted(&newest.body, reader))
    }
}

/// Whether every member gets a push, whenever it reads.
fn is_for_all(body: &Body) -> bool {
    match body.kind {
        Kind::Push => body.except.is_empty() && body.expires == Micros(u64::MAX),
        Kind::Presence(_) => false,
    }
}

/// Bytes that a push counts for.
pub fn cost(body: &Body) -> usize {
    body.payload.len() + body.kind.bytes() + PUSH_OVERHEAD_BYTES
}

/// Whether a push leaves `reader` out.
pub fn is_excepted(body: &Body, reader: &Reader<'_>) -> bool {
    body.except.iter().any(|excepted| match excepted {
        Excepted::Session(session) => session.as_str() == reader.session,
        Excepted::User(user) => reader.user == Some(&**user),
    })
}

#[cfg(test)]
pub(crate) mod tests;
