//! Frames: any split of the bytes gives the same events; every broken rule its close code.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

const LIMITS: FrameLimits = FrameLimits { message_bytes_max: 4096, fragments_max: 16 };

/// An event that owns its payload.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Seen {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
}

impl From<FrameEvent<'_>> for Seen {
    fn from(event: FrameEvent<'_>) -> Self {
        match event {
            FrameEvent::Text(text) => Seen::Text(text.to_owned()),
            FrameEvent::Binary(bytes) => Seen::Binary(bytes.to_owned()),
            FrameEvent::Ping(bytes) => Seen::Ping(bytes.to_owned()),
            FrameEvent::Pong => Seen::Pong,
            FrameEvent::Close { code } => Seen::Close(code),
        }
    }
}

/// Bytes of a client's frame.
fn frame(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        len @ 0..=125 => out.push(0x80 | len as u8),
        len @ 126..=65_535 => {
            out.push(0x80 | 126);
            out.extend((len as u16).to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend((len as u64).to_be_bytes());
        }
    }
    out.extend(mask);
    out.extend(payload.iter().enumerate().map(|(i, byte)| byte ^ mask[i % 4]));
    out
}

const MASK: [u8; 4] = [0x11, 0x92, 0xa3, 0x04];
const FIN: u8 = 0x80;

fn frames(parts: &[(u8, &[u8])]) -> Vec<u8> {
    parts.iter().flat_map(|(first, payload)| frame(*first, payload, MASK)).collect()
}

type Run = (Vec<Seen>, u32, Option<ProtocolError>);

/// Feeds `bytes` in one piece.
fn run_whole(limits: &FrameLimits, bytes: &[u8]) -> Run {
    run_split(limits, bytes, &[], &[])
}

/// Feeds `bytes` cut at `cuts`, pausing after each event whose turn in `pauses` is true.
fn run_split(limits: &FrameLimits, bytes: &[u8], cuts: &[usize], pauses: &[bool]) -> Run {
    let mut decoder = Decoder::default();
    let (mut seen, mut count, mut error) = (Vec::new(), 0, None);
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    ends.sort_unstable();
    ends.push(bytes.len());
    let mut start = 0;
    for (turn, end) in ends.into_iter().enumerate() {
        let mut part = bytes[start..end].to_vec();
        start = end;
        // Some pauses are lifted by the next receive, some by an empty one.
        let lift_now = turn % 2 == 0 || start == bytes.len();
        loop {
            let result = decoder.feed(limits, &mut part, |event| {
                seen.push(Seen::from(event));
                match pauses.get(seen.len() % pauses.len().max(1)) {
                    Some(true) => Flow::Pause,
                    Some(false) | None => Flow::Continue,
                }
            });
            part.clear();
            match result {
                Ok(fed) => count += fed.frames,
                Err(why) => error = Some(why),
            }
            if !(result.is_ok_and(|fed| fed.paused) && lift_now) {
                break;
            }
        }
    }
    (seen, count, error)
}

fn fails(limits: &FrameLimits, bytes: &[u8]) -> Option<ProtocolError> {
    let whole = run_whole(limits, bytes);
    let every_byte: Vec<usize> = (0..bytes.len().min(2000)).collect();
    assert_eq!(run_split(limits, bytes, &every_byte, &[]).2, whole.2, "byte by byte");
    whole.2
}

#[test]
fn every_broken_rule_has_its_close_code() {
    use ProtocolError::*;
    let long = [b'x'; 126];
    let cases: &[(&str, Vec<u8>, ProtocolError, u16)] = &[
        ("unmasked", vec![0x81, 1, b'x'], NotMasked, 1002),
        ("rsv1", frames(&[(0xc1, b"x")]), ReservedBits, 1002),
        ("rsv2", frames(&[(0xa1, b"x")]), ReservedBits, 1002),
        ("rsv3", frames(&[(0x91, b"x")]), ReservedBits, 1002),
        ("opcode 3", frames(&[(0x83, b"x")]), ReservedOpcode, 1002),
        ("opcode 7", frames(&[(0x87, b"x")]), ReservedOpcode, 1002),
        ("opcode 11", frames(&[(0x8b, b"")]), ReservedOpcode, 1002),
        ("opcode 15", frames(&[(0x8f, b"")]), ReservedOpcode, 1002),
        ("ping of 126", frames(&[(0x89, &long)]), ControlTooLong, 1002),
        ("ping in pieces", frames(&[(0x09, b"x")]), ControlFragmented, 1002),
        ("close in pieces", frames(&[(0x08, b"")]), ControlFragmented, 1002),
        ("continuation first", frames(&[(0x80, b"x")]), ContinuationFirst, 1002),
        (
            "continuation after the end",
            frames(&[(1, b"a"), (0x80, b"b"), (0x80, b"c")]),
            ContinuationFirst,
            1002,
        ),
        ("text inside text", frames(&[(1, b"a"), (0x81, b"b")]), MessageInterrupted, 1002),
        ("binary inside text", frames(&[(1, b"a"), (2, b"b")]), MessageInterrupted, 1002),
        ("bad text", frames(&[(0x81, b"a\xffb")]), BadUtf8, 1007),
        ("cut character", frames(&[(0x81, b"a\xe2\x82")]), BadUtf8, 1007),
        ("surrogate", frames(&[(0x81, b"\xed\xa0\x80")]), BadUtf8, 1007),
        ("cut over fragments", frames(&[(1, b"\xe2\x82"), (0x80, b"x")]), BadUtf8, 1007),
        ("cut at the end", frames(&[(1, b"ab\xe2"), (0x80, b"\x82")]), BadUtf8, 1007),
        ("close of 1 byte", frames(&[(0x88, b"\x03")]), BadClose, 1002),
        ("close reason", frames(&[(0x88, b"\x03\xe8\xff")]), BadUtf8, 1007),
        ("16 bits for 5", vec![0x82, 0x80 | 126, 0, 5, 0, 0, 0, 0], LengthNotMinimal, 1002),
        (
            "64 bits for 300",
            vec![0x82, 0xff, 0, 0, 0, 0, 0, 0, 1, 44, 0, 0, 0, 0],
            LengthNotMinimal,
            1002,
        ),
        ("over the cap", frames(&[(0x82, &[0; 4097])]), TooBig, 1009),
        ("over in sum", frames(&[(2, &[0; 4000]), (0x80, &[0; 97])]), TooBig, 1009),
    ];
    for (name, bytes, error, code) in cases {
        assert_eq!(fails(&LIMITS, bytes), Some(*error), "{name}");
        assert_eq!(error.close_code(), *code, "{name}");
    }
}

#[test]
fn every_error_has_a_text_that_fits_a_close_frame() {
    for error in ProtocolError::ALL {
        assert!((1..=CLOSE_REASON_BYTES_MAX).contains(&error.text().len()));
        assert!([1002, 1007, 1009].contains(&error.close_code()));
    }
}

#[test]
fn close_codes_that_must_not_be_sent_are_refused() {
    let allowed = |code: u16| matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
    for code in 0..=u16::MAX {
        let (seen, _, error) = run_whole(&LIMITS, &frames(&[(0x88, &code.to_be_bytes())]));
        if allowed(code) {
            assert_eq!((seen, error), (vec![Seen::Close(Some(code))], None));
        } else {
            assert_eq!((seen, error), (vec![], Some(ProtocolError::BadClose)), "{code}");
        }
    }
}

#[test]
fn nothing_is_read_after_close_or_an_error() {
    let mut decoder = Decoder::default();
    let mut bytes = frames(&[(0x88, b""), (0x81, b"late"), (0xff, b"")]);
    let mut seen = Vec::new();
    let fed = decoder.feed(&LIMITS, &mut bytes, |event| {
        seen.push(Seen::from(event));
        Flow::Continue
    });
    assert_eq!((fed, seen), (Ok(Fed { frames: 1, paused: false }), vec![Seen::Close(None)]));
    assert!(decoder.ended());
    let never = |_: FrameEvent<'_>| -> Flow { panic!("an event after the end") };
    assert_eq!(decoder.feed(&LIMITS, &mut frames(&[(0xff, b"")]), never), Ok(Fed::default()));

    let mut decoder = Decoder::default();
    let mut bytes = frames(&[(0x80, b"")]);
    assert!(decoder.feed(&LIMITS, &mut bytes, never).is_err());
    let mut bytes = frames(&[(0x81, b"x")]);
    assert_eq!(decoder.feed(&LIMITS, &mut bytes, never), Ok(Fed::default()));
    assert_eq!((decoder.held_bytes(), decoder.memory_bytes()), (0, 0));
}

#[test]
fn a_huge_declared_length_is_refused_on_the_header_without_memory() {
    for len in [4097_u64, 128 << 20, 1 << 63, u64::MAX] {
        for first in [0x82, 0x02, 0x81] {
            let mut bytes = vec![first, 0xff];
            bytes.extend(len.to_be_bytes());
            if len <= 65_535 {
                bytes = vec![first, 0x80 | 126];
                bytes.extend((len as u16).to_be_bytes());
            }
            bytes.extend(MASK);
            let mut decoder = Decoder::default();
            let result = decoder.feed(&LIMITS, &mut bytes, |_| Flow::Continue);
            assert_eq!(result, Err(ProtocolError::TooBig));
            assert_eq!(decoder.memory_bytes(), 0);
        }
        // The sum of a continuation must not overflow either.
        let mut bytes = frames(&[(2, b"abc")]);
        bytes.extend([0x80, 0xff]);
        bytes.extend(len.max(65_536).to_be_bytes());
        bytes.extend(MASK);
        assert_eq!(fails(&LIMITS, &bytes), Some(ProtocolError::TooBig));
    }
}

#[test]
fn a_partial_frame_buffers_only_what_arrived() {
    let limits = FrameLimits { message_bytes_max: 16 << 20, fragments_max: 1 };
    let mut decoder = Decoder::default();
    let mut bytes = frame(0x82, &vec![7; 16 << 20], MASK);
    decoder.feed(&limits, &mut bytes[..1014], |_| Flow::Continue).unwrap();
    assert_eq!(decoder.held_bytes(), 1000);
    assert!(decoder.memory_bytes() < 3000);
}

#[test]
fn empty_fragments_are_counted() {
    let mut bytes = frames(&[(1, b"")]);
    for _ in 0..LIMITS.fragments_max {
        bytes.extend(frames(&[(0, b"")]));
    }
    assert_eq!(fails(&LIMITS, &bytes), Some(ProtocolError::TooManyFragments));
    let mut bytes = frames(&[(1, b"")]);
    for _ in 2..LIMITS.fragments_max {
        bytes.extend(frames(&[(0, b"")]));
    }
    bytes.extend(frames(&[(FIN, b"")]));
    let (seen, count, error) = run_whole(&LIMITS, &bytes);
    assert_eq!((seen, count, error), (vec![Seen::Text(String::new())], 16, None));
}

#[test]
fn small_messages_are_held_to_the_limits_too() {
    let limits = FrameLimits { message_bytes_max: 5, fragments_max: 1 };
    assert_eq!(fails(&limits, &frames(&[(0x81, b"12345")])), None);
    assert_eq!(fails(&limits, &frames(&[(0x81, b"123456")])), Some(ProtocolError::TooBig));
    assert_eq!(fails(&limits, &frames(&[(0x01, b""), (0x80, b"")])).unwrap().close_code(), 1009);
    let empty = (vec![Seen::Text(String::new())], 1, None);
    assert_eq!(run_whole(&limits, &frames(&[(0x81, b"")])), empty);
}

#[test]
fn bad_text_fails_before_its_frame_is_complete() {
    let mut bytes = frame(0x01, b"hello \xff and much more", MASK);
    let mut decoder = Decoder::default();
    let result = decoder.feed(&LIMITS, &mut bytes[..14], |_| Flow::Continue);
    assert_eq!(result, Err(ProtocolError::BadUtf8));
}

#[test]
fn an_idle_decoder_is_small_and_owns_nothing() {
    assert!(size_of::<Decoder>() <= 40, "{} bytes", size_of::<Decoder>());
    let mut decoder = Decoder::default();
    let mut bytes = frames(&[(1, b"ab"), (0x89, b"p"), (0x80, b"c"), (0x81, b"whole")]);
    for part in bytes.chunks_mut(3) {
        decoder.feed(&LIMITS, part, |_| Flow::Continue).unwrap();
    }
    assert_eq!((decoder.held_bytes(), decoder.memory_bytes()), (0, 0));
}

#[test]
fn a_whole_message_is_lent_out_of_the_input() {
    let mut decoder = Decoder::default();
    let mut bytes = frames(&[(0x81, b"first"), (0x82, b"second")]);
    // Even when its header came in two receives.
    let (start, rest) = bytes.split_at_mut(3);
    decoder.feed(&LIMITS, start, |_| Flow::Continue).unwrap();
    let range = rest.as_ptr_range();
    let mut count = 0;
    let fed = decoder.feed(&LIMITS, rest, |event| {
        let payload = match event {
            FrameEvent::Text(text) => text.as_bytes(),
            FrameEvent::Binary(bytes) => bytes,
            FrameEvent::Ping(_) | FrameEvent::Pong | FrameEvent::Close { .. } => &[],
        };
        assert!(range.contains(&payload.as_ptr()));
        count += 1;
        Flow::Continue
    });
    assert_eq!((fed, count), (Ok(Fed { frames: 2, paused: false }), 2));
    assert_eq!(decoder.memory_bytes(), 0);
}

#[test]
fn a_pause_keeps_the_rest_for_an_empty_feed() {
    let mut decoder = Decoder::default();
    let mut seen = Vec::new();
    let mut bytes = frames(&[(0x81, b"a"), (0x81, b"b"), (0x81, b"c")]);
    let mut go = |decoder: &mut Decoder, input: &mut [u8]| {
        decoder
            .feed(&LIMITS, input, |event| {
                seen.push(Seen::from(event));
                Flow::Pause
            })
            .unwrap()
    };
    assert_eq!(go(&mut decoder, &mut bytes), Fed { frames: 1, paused: true });
    assert_eq!((decoder.held_bytes(), decoder.has_unread()), (14, true));
    assert_eq!(go(&mut decoder, &mut []), Fed { frames: 1, paused: true });
    assert_eq!((decoder.held_bytes(), decoder.has_unread()), (7, true));
    assert_eq!(go(&mut decoder, &mut []), Fed { frames: 1, paused: true });
    assert_eq!((decoder.held_bytes(), decoder.has_unread()), (0, false));
    assert_eq!(go(&mut decoder, &mut []), Fed { frames: 0, paused: false });
    assert_eq!(seen, ["a", "b", "c"].map(|text| Seen::Text(text.to_owned())));
    assert_eq!(decoder.memory_bytes(), 0);
}

#[test]
fn what_the_gateway_writes_has_minimal_unmasked_headers() {
    for (len, header) in [
        (0, vec![0x82, 0]),
        (125, vec![0x82, 125]),
        (126, vec![0x82, 126, 0, 126]),
        (65_535, vec![0x82, 126, 0xff, 0xff]),
        (65_536, vec![0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
    ] {
        let mut out = Vec::new();
        write_frame_header(&mut out, OpCode::Data(Data::Binary), len);
        assert_eq!(out, header);
        assert_eq!(frame_header_len(len), header.len());
    }
    let mut out = Vec::new();
    write_pong(&mut out, b"abc");
    write_close(&mut out, None, "unsaid");
    write_close(&mut out, Some(1001), "bye");
    assert_eq!(out, b"\x8a\x03abc\x88\x00\x88\x05\x03\xe9bye");
}

#[test]
fn a_close_reason_is_cut_between_characters() {
    let mut out = Vec::new();
    write_close(&mut out, Some(1008), &"\u{20ac}".repeat(50));
    assert_eq!(out[1], 2 + 123);
    out.clear();
    write_close(&mut out, Some(1008), &format!("x{}", "\u{20ac}".repeat(50)));
    assert_eq!(out[1], 2 + 121);
    assert!(std::str::from_utf8(&out[4..]).is_ok());
}

/// A data message: its bytes, the places where it is cut into frames, and the control frames before
/// each frame.
#[derive(Clone, Debug)]
struct Said {
    text: Option<String>,
    bytes: Vec<u8>,
    cuts: Vec<Index>,
    controls: Vec<Option<(bool, Vec<u8>)>>,
    mask: [u8; 4],
}

fn said() -> impl Strategy<Value = Said> {
    let short = || vec(any::<u8>(), 0..300);
    let text = prop::option::of(vec(any::<char>(), 0..80).prop_map(String::from_iter));
    let control = prop::option::weighted(0.3, (any::<bool>(), vec(any::<u8>(), 0..=125)));
    (text, short(), vec(any::<Index>(), 0..4), vec(control, 5), any::<[u8; 4]>()).prop_map(
        |(text, bytes, cuts, controls, mask)| {
            let bytes = text.as_ref().map_or(bytes, |text| text.clone().into_bytes());
            Said { text, bytes, cuts, controls, mask }
        },
    )
}

impl Said {
    /// Appends the message's frames and the expected events; returns the number of frames.
    fn say(&self, out: &mut Vec<u8>, seen: &mut Vec<Seen>) -> u32 {
        let mut ends: Vec<usize> =
            self.cuts.iter().map(|cut| cut.index(self.bytes.len() + 1)).collect();
        ends.sort_unstable();
        ends.push(self.bytes.len());
        let (mut start, mut count) = (0, 0);
        for (i, &end) in ends.iter().enumerate() {
            if let Some((ping, payload)) = &self.controls[i] {
                out.extend(frame(if *ping { 0x89 } else { 0x8a }, payload, self.mask));
                seen.push(if *ping { Seen::Ping(payload.clone()) } else { Seen::Pong });
                count += 1;
            }
            let opcode = match (i, &self.text) {
                (0, Some(_)) => 1,
                (0, None) => 2,
                (_, _) => 0,
            };
            let fin = if i + 1 == ends.len() { FIN } else { 0 };
            out.extend(frame(fin | opcode, &self.bytes[start..end], self.mask));
            start = end;
            count += 1;
        }
        seen.push(match &self.text {
            Some(text) => Seen::Text(text.clone()),
            None => Seen::Binary(self.bytes.clone()),
        });
        count
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_split_and_any_pauses_give_the_same_events(
        script in vec(said(), 0..6),
        close in prop::option::of(1000_u16..=1003),
        cuts in vec(any::<usize>(), 0..12),
        pauses in vec(any::<bool>(), 0..5),
    ) {
        let (mut bytes, mut expected, mut count) = (Vec::new(), Vec::new(), 0);
        for said in &script {
            count += said.say(&mut bytes, &mut expected);
        }
        if let Some(code) = close {
            bytes.extend(frame(0x88, &code.to_be_bytes(), MASK));
            expected.push(Seen::Close(Some(code)));
            count += 1;
        }
        prop_assert_eq!(run_whole(&LIMITS, &bytes), (expected.clone(), count, None));
        prop_assert_eq!(run_split(&LIMITS, &bytes, &cuts, &pauses), (expected, count, None));
    }

    #[test]
    fn damaged_streams_end_the_same_way_however_they_are_split(
        script in vec(said(), 1..4),
        damage in vec((any::<Index>(), any::<u8>()), 1..4),
        cuts in vec(any::<usize>(), 0..12),
        pauses in vec(any::<bool>(), 0..5),
    ) {
        let mut bytes = Vec::new();
        for said in &script {
            said.say(&mut bytes, &mut Vec::new());
        }
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        // A call that fails does not say how many frames it completed before.
        let (seen, _, error) = run_whole(&LIMITS, &bytes);
        let split = run_split(&LIMITS, &bytes, &cuts, &pauses);
        prop_assert_eq!((split.0, split.2), (seen, error));
    }

    #[test]
    fn noise_never_panics(bytes in vec(any::<u8>(), 0..200), cuts in vec(any::<usize>(), 0..8)) {
        let (seen, _, error) = run_whole(&LIMITS, &bytes);
        let split = run_split(&LIMITS, &bytes, &cuts, &[]);
        prop_assert_eq!((split.0, split.2), (seen, error));
    }
}
