//! Frames of a session that its client may not have: a window that slides.
//!
//! Each numbered frame gets the session's next *offset* when it is placed here, so the order of
//! offsets is the order of delivery, and one number of the client's, its `ack`, says what it has. A
//! frame leaves with the ack that covers it, or when the window has no room for a newer one: then a
//! client that comes back from before that is told of the gap. Nobody waits for a client, and
//! nobody is closed for what it does not confirm.

use std::collections::VecDeque;

/// Bytes of frames for which memory stays allocated while none is kept: one or two small answers,
/// so that a client that confirms each of them costs no allocation a message.
pub const STAYS_BYTES: usize = 256;
/// Frames for which memory stays allocated: 8 lengths are 32 bytes.
pub const STAYS_ITEMS: usize = 8;

/// The caps of a window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WindowCaps {
    /// Number of frames.
    pub items: usize,
    /// Bytes of all of them.
    pub bytes: usize,
}

/// An ack above the last offset that was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AckAhead;

/// The frames, as they go on the wire, and the offset of the last one.
#[derive(Debug, Default)]
pub struct Kept {
    bytes: VecDeque<u8>,
    /// Lengths of the frames, the oldest first.
    lengths: VecDeque<u32>,
    last: u64,
}

impl Kept {
    /// The last offset that was given; 0 = none yet.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Bytes of the frames.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Number of the frames.
    pub fn count(&self) -> usize {
        self.lengths.len()
    }

    /// Bytes of memory that it holds beside itself.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.capacity() + self.lengths.capacity() * size_of::<u32>()
    }

    /// Keeps the frame with the next offset; the oldest ones make room for it. False: it is larger
    /// than the whole window, so that neither it nor anything before it is kept.
    pub fn push(&mut self, frame: &[u8], caps: WindowCaps) -> bool {
        if frame.len() > caps.bytes || caps.items == 0 {
            self.skip();
            return false;
        }
        self.last += 1;
        while self.count() >= caps.items || self.size() + frame.len() > caps.bytes {
            self.drop_oldest();
        }
        self.bytes.extend(frame);
        // A frame is no larger than the window, and that is at most 16 MiB.
        self.lengths.push_back(frame.len() as u32);
        true
    }

    /// Gives the next offset to a frame that is not kept: nothing before it is of use any more.
    pub fn skip(&mut self) {
        self.last += 1;
        self.clear();
    }

    /// Drops what the client has: everything up to `offset`.
    pub fn confirm(&mut self, offset: u64) -> Result<(), AckAhead> {
        if offset > self.last {
            return Err(AckAhead);
        }
        while self.first() <= offset && self.count() > 0 {
            self.drop_oldest();
        }
        Ok(())
    }

    /// Whether every frame above `offset` is kept.
    pub fn has_all_after(&self, offset: u64) -> bool {
        self.first() <= offset.saturating_add(1)
    }

    /// The bytes of all frames, in order, in two pieces.
    pub fn pieces(&self) -> (&[u8], &[u8]) {
        self.bytes.as_slices()
    }

    /// Drops the oldest frame, if there is one.
    pub fn drop_oldest(&mut self) {
        if let Some(length) = self.lengths.pop_front() {
            self.bytes.drain(..length as usize);
        }
    }

    /// Drops all frames. Offsets go on.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.lengths.clear();
    }

    /// Gives back memory beyond what is kept, and beyond what stays for the next small answer.
    pub fn shrink(&mut self) {
        self.bytes.shrink_to(STAYS_BYTES);
        self.lengths.shrink_to(STAYS_ITEMS);
    }

    /// Offset of the oldest frame; of the next one if none is kept.
    fn first(&self) -> u64 {
        self.last + 1 - self.count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Push(usize),
        Confirm(u64),
        Shrink,
        DropOldest,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..60_usize).prop_map(Step::Push),
            3 => (0..40_u64).prop_map(Step::Confirm),
            1 => Just(Step::Shrink),
            1 => Just(Step::DropOldest),
        ]
    }

    proptest! {
        /// Against a plain list of all frames that were ever given.
        #[test]
        fn a_window_has_the_newest_frames_that_fit_and_that_nobody_confirmed(
            steps in proptest::collection::vec(step(), 1..80),
            items in 1..12_usize,
            bytes in 1..200_usize,
        ) {
            let caps = WindowCaps { items, bytes };
            let mut kept = Kept::default();
            // Frames with their offsets; `first` is that of the oldest one that must be there.
            let mut all: Vec<(u64, Vec<u8>)> = Vec::new();
            let mut first = 1;
            for step in steps {
                let last = all.last().map_or(0, |(offset, _)| *offset);
                match step {
                    Step::Push(length) => {
                        let frame = vec![last as u8; length];
                        let fits = length <= bytes;
                        prop_assert_eq!(kept.push(&frame, caps), fits);
                        all.push((last + 1, frame));
                        if !fits {
                            first = last + 2;
                        }
                    }
                    Step::Confirm(offset) => {
                        let ok = kept.confirm(offset);
                        prop_assert_eq!(ok.is_ok(), offset <= last);
                        if ok.is_ok() {
                            first = first.max(offset + 1);
                        }
                    }
                    Step::Shrink => kept.shrink(),
                    Step::DropOldest => {
                        kept.drop_oldest();
                        first = (first + 1).min(last + 1);
                    }
                }
                let last = all.last().map_or(0, |(offset, _)| *offset);
                let size = |from: u64| -> usize {
                    all.iter().filter(|(o, _)| *o >= from).map(|(_, f)| f.len()).sum()
                };
                while last + 1 - first > items as u64 || size(first) > bytes {
                    first += 1;
                }
                let expected: Vec<u8> = all
                    .iter()
                    .filter(|(offset, _)| *offset >= first)
                    .flat_map(|(_, frame)| frame.clone())
                    .collect();
                let (a, b) = kept.pieces();
                prop_assert_eq!([a, b].concat(), expected);
                prop_assert_eq!(kept.last(), last);
                for offset in 0..=last {
                    prop_assert_eq!(kept.has_all_after(offset), offset + 1 >= first);
                }
            }
        }
    }

    #[test]
    fn memory_beyond_a_small_answer_is_given_back() {
        let caps = WindowCaps { items: 256, bytes: 65_536 };
        let mut kept = Kept::default();
        (0..100).for_each(|_| assert!(kept.push(&[0; 500], caps)));
        assert!(kept.memory_bytes() >= 50_000);
        kept.confirm(100).expect("given");
        kept.shrink();
        assert!(kept.memory_bytes() <= STAYS_BYTES + 4 * STAYS_ITEMS, "{}", kept.memory_bytes());
        let before = kept.memory_bytes();
        (0..200).for_each(|n| {
            assert!(kept.push(&[0; 100], caps));
            kept.confirm(101 + n).expect("given");
        });
        assert_eq!(kept.memory_bytes(), before, "a confirmed answer allocates nothing");
    }
}
