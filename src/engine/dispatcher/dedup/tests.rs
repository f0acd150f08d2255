//! Promise 8, at most once per window: the window against a model that is a plain list.

use std::collections::BTreeSet;

use super::*;
use crate::engine::owner::{Address, Party};
use crate::engine::shares::tests::List;
use crate::ids::{ShardId, TenantId};
use proptest::prelude::*;

const ADDRESS: Address = Address::V4([192, 0, 2, 1]);
const WINDOW_US: u64 = 10_000;

fn settings() -> DedupSettings {
    DedupSettings {
        enabled: true,
        window_ms: WINDOW_US / 1000,
        entries_max: 100,
        bytes_max: 1 << 20,
        reply_bytes_max: 100,
    }
}

fn reply(text: &str) -> StoredReply {
    StoredReply {
        status: 0,
        reason: None,
        message: "".into(),
        payload: text.as_bytes().into(),
        is_bytes: false,
        retry_after_ms: 0,
    }
}

fn msg(n: u64) -> MsgKey {
    MsgKey(n)
}

/// An id of a user, or of a session from [`ADDRESS`].
fn id_of<'a>(
    window: &DedupWindow,
    tenant: u64,
    scope: Scope<'a>,
    text: &'a str,
    print: u128,
) -> DedupId<'a> {
    window.id(holder_of(tenant, scope), scope, text, print)
}

fn holder_of(tenant: u64, scope: Scope<'_>) -> Holder {
    let hash = crate::routing::affinity_hash(TenantId(tenant), scope.bytes());
    let (party, session) = match scope {
        Scope::User(_) => (Party::User(hash), 0),
        Scope::Session(_) => (Party::Address(ADDRESS), hash),
    };
    Holder { tenant: TenantId(tenant), party, session }
}

/// The id "a" of user "u", message 1001 with an empty payload.
fn plain(window: &DedupWindow) -> DedupId<'static> {
    id_of(window, 0, Scope::User("u"), "a", fingerprint(1001, b""))
}

/// Checks that the parts of the window agree, and [`DedupWindow::bytes`] against a new count.
fn check_invariants(window: &DedupWindow) {
    let (mut bytes, mut stored, mut live) = (0, 0, 0);
    for (key, entry) in window.entries.iter() {
        bytes += ENTRY_BYTES + entry.key.len();
        match &entry.state {
            IdState::InFlight { waiters } => bytes += waiters.len() * WAITER_BYTES,
            IdState::Finished { reply, .. } => {
                stored += reply.as_ref().map_or(0, |r| r.cost());
                live += 1;
                let at = window.finished.iter().position(|&k| k == key).expect("queued");
                assert!(reply.is_none() || at >= window.stripped);
            }
        }
    }
    assert_eq!((window.bytes, window.stored_bytes), (bytes + stored, stored));
    let rooms: usize = window.entries.iter().map(|(_, entry)| entry.room).sum();
    assert_eq!([IDS, ANSWERS].map(|thing| window.shares.held(thing)), [rooms, stored]);
    assert_eq!(window.table.len(), window.entries.len());
    assert!(window.finished.len() >= live && window.stripped <= window.finished.len());
    assert!(window.bytes <= window.bytes_max);
}

#[test]
fn a_duplicate_waits_then_gets_the_answer_until_the_window_has_passed() {
    let mut window = DedupWindow::new(&settings(), 1);
    let id = plain(&window);
    assert_eq!(window.check(&id, Micros(0)), Lookup::New);
    let key = window.begin(&id, Micros(0)).expect("room");
    assert_eq!(window.begin(&id, Micros(0)), None, "it is not new any more");
    assert_eq!(window.check(&id, Micros(0)), Lookup::InFlight(key));
    assert!(window.add_waiter(key, msg(7), Micros(0)));
    assert!(window.add_waiter(key, msg(8), Micros(0)));
    // An id in flight is not forgotten, however long its message takes.
    let end = Micros(100 * WINDOW_US);
    window.expire(end, 100);
    assert_eq!(window.check(&id, end), Lookup::InFlight(key));
    assert_eq!(window.finish(key, Some(reply("42")), end), [msg(7), msg(8)]);
    let last = Micros(end.0 + WINDOW_US - 1);
    window.expire(last, 100);
    assert_eq!(window.check(&id, last), Lookup::Finished(&reply("42")));
    let past = Micros(end.0 + WINDOW_US);
    assert_eq!(window.check(&id, past), Lookup::New);
    assert!(window.begin(&id, past).is_some());
    assert_eq!(window.len(), 1);
    check_invariants(&window);
}

#[test]
fn a_pause_of_the_process_is_no_part_of_the_window() {
    let mut window = DedupWindow::new(&settings(), 1);
    let id = plain(&window);
    let key = window.begin(&id, Micros(0)).expect("room");
    window.finish(key, Some(reply("42")), Micros(0));
    window.put_off(12 * WINDOW_US);
    let last = Micros(13 * WINDOW_US - 1);
    window.expire(last, 100);
    assert_eq!(window.check(&id, last), Lookup::Finished(&reply("42")));
    assert_eq!(window.check(&id, Micros(13 * WINDOW_US)), Lookup::New);
    // One that ends after a pause has the whole window from there.
    let end = Micros(20 * WINDOW_US);
    let key = window.begin(&id, end).expect("room");
    window.finish(key, Some(reply("43")), end);
    assert_eq!(window.check(&id, Micros(21 * WINDOW_US - 1)), Lookup::Finished(&reply("43")));
    assert_eq!(window.check(&id, Micros(21 * WINDOW_US)), Lookup::New);
    check_invariants(&window);
}

#[test]
fn a_refusal_before_dispatch_frees_the_id() {
    let mut window = DedupWindow::new(&settings(), 1);
    let id = plain(&window);
    let key = window.begin(&id, Micros(0)).expect("room");
    assert!(window.add_waiter(key, msg(7), Micros(0)));
    assert_eq!(window.release(key), [msg(7)]);
    assert_eq!(window.check(&id, Micros(0)), Lookup::New);
    assert_eq!((window.len(), window.bytes()), (0, 0));
    // The key is stale now: it does not reach the new entry in its slot.
    let again = window.begin(&id, Micros(0)).expect("room");
    assert!(window.release(key).is_empty());
    assert!(window.finish(key, None, Micros(0)).is_empty());
    assert!(!window.add_waiter(key, msg(7), Micros(0)));
    assert_eq!(window.check(&id, Micros(0)), Lookup::InFlight(again));
}

#[test]
fn an_end_is_final() {
    let mut window = DedupWindow::new(&settings(), 1);
    let id = plain(&window);
    let key = window.begin(&id, Micros(0)).expect("room");
    window.finish(key, Some(reply("first")), Micros(0));
    assert!(window.release(key).is_empty());
    assert!(window.finish(key, Some(reply("second")), Micros(0)).is_empty());
    assert!(!window.add_waiter(key, msg(7), Micros(0)));
    assert_eq!(window.check(&id, Micros(0)), Lookup::Finished(&reply("first")));
    check_invariants(&window);
}

#[test]
fn the_same_id_for_something_else_is_a_mismatch() {
    let mut window = DedupWindow::new(&settings(), 1);
    let ask = |window: &DedupWindow, msg_id, payload: &[u8]| {
        id_of(window, 0, Scope::User("u"), "a", fingerprint(msg_id, payload))
    };
    let key = window.begin(&ask(&window, 1001, b"x"), Micros(0)).expect("room");
    for finished in [false, true] {
        for (msg_id, payload) in [(1002, &b"x"[..]), (1001, b"y"), (1001, b"")] {
            let other = ask(&window, msg_id, payload);
            assert_eq!(window.check(&other, Micros(0)), Lookup::Mismatch, "finished: {finished}");
            assert_eq!(window.begin(&other, Micros(0)), None);
        }
        window.finish(key, None, Micros(0));
    }
    assert_eq!(window.check(&ask(&window, 1001, b"x"), Micros(0)), Lookup::FinishedNotStored);
}

#[test]
fn owners_tenants_and_ids_are_told_apart_in_full() {
    let mut window = DedupWindow::new(&settings(), 1);
    let session = SessionId::new(ShardId(0), 0);
    let name = "0000000000000000";
    let ids = [
        (0, Scope::Session(&session), "a"),
        (0, Scope::User(name), "a"),
        (1, Scope::User(name), "a"),
        (0, Scope::User("ab"), "c"),
        (0, Scope::User("ba"), "c"),
        (0, Scope::User("ab"), "d"),
        (0, Scope::User("a"), "bc"),
        (0, Scope::User("abc"), ""),
    ];
    for (tenant, owner, text) in ids {
        let mut id = id_of(&window, tenant, owner, text, 0);
        id.hash = 7; // so that all of them collide
        assert_eq!(window.check(&id, Micros(0)), Lookup::New);
        assert!(window.begin(&id, Micros(0)).is_some());
    }
    assert_eq!(window.len(), ids.len());
}

#[test]
fn an_answer_too_large_is_not_stored() {
    let mut window = DedupWindow::new(&settings(), 1);
    for (size, stored) in [(100, true), (101, false)] {
        let text = size.to_string();
        let id = id_of(&window, 0, Scope::User("u"), &text, 0);
        let key = window.begin(&id, Micros(0)).expect("room");
        let large = reply(&"x".repeat(size));
        window.finish(key, Some(large.clone()), Micros(0));
        let want = if stored { Lookup::Finished(&large) } else { Lookup::FinishedNotStored };
        assert_eq!(window.check(&id, Micros(0)), want);
    }
}

#[test]
fn a_full_window_refuses_and_forgets_nothing() {
    let mut window = DedupWindow::new(&DedupSettings { entries_max: 2, ..settings() }, 1);
    let ids = [("u", "a"), ("v", "b"), ("u", "c")];
    let ids = ids.map(|(user, text)| id_of(&window, 0, Scope::User(user), text, 0));
    let key = window.begin(&ids[0], Micros(0)).expect("room");
    window.begin(&ids[1], Micros(0)).expect("room");
    assert_eq!(window.begin(&ids[2], Micros(0)), None);
    window.finish(key, None, Micros(5));
    assert_eq!(window.begin(&ids[2], Micros(4 + WINDOW_US)), None);
    assert_eq!(window.check(&ids[0], Micros(4 + WINDOW_US)), Lookup::FinishedNotStored);
    // The window of the first id has passed: it makes room.
    assert!(window.begin(&ids[2], Micros(5 + WINDOW_US)).is_some());
    assert_eq!(window.check(&ids[0], Micros(5 + WINDOW_US)), Lookup::New);
}

#[test]
fn stored_answers_make_room_for_ids_oldest_first() {
    let each = ENTRY_BYTES + 2;
    let bytes_max = 3 * each + 2 * (REPLY_BYTES + 500);
    let reply_bytes_max = 500;
    let caps = DedupSettings { bytes_max, reply_bytes_max, ..settings() };
    let mut window = DedupWindow::new(&caps, 1);
    let ids = ["a", "b", "c", "d"].map(|text| id_of(&window, 0, Scope::User("u"), text, 0));
    let answer = reply(&"x".repeat(500));
    assert!(answer.cost() > each, "one answer makes room for one id");
    for id in &ids[..3] {
        let key = window.begin(id, Micros(0)).expect("room");
        window.finish(key, Some(answer.clone()), Micros(0));
        check_invariants(&window);
    }
    let seen = |window: &DedupWindow| {
        ids.each_ref().map(|id| match window.check(id, Micros(0)) {
            Lookup::New => "new",
            Lookup::InFlight(_) => "in flight",
            Lookup::Finished(_) => "stored",
            Lookup::FinishedNotStored => "not stored",
            Lookup::Mismatch => "mismatch",
        })
    };
    assert_eq!(seen(&window), ["not stored", "stored", "stored", "new"]);
    window.begin(&ids[3], Micros(0)).expect("room");
    check_invariants(&window);
    assert!(window.stored_bytes < 2 * answer.cost());
    assert_eq!(seen(&window)[2..], ["stored", "in flight"]);
}

#[test]
fn what_cannot_fit_takes_no_stored_answer_down_with_it() {
    let bytes_max = ENTRY_BYTES + 2 + REPLY_BYTES + 10;
    let mut window = DedupWindow::new(&DedupSettings { bytes_max, ..settings() }, 1);
    let id = plain(&window);
    let key = window.begin(&id, Micros(0)).expect("room");
    window.finish(key, Some(reply("0123456789")), Micros(0));
    let name = "u".repeat(bytes_max);
    let large = id_of(&window, 0, Scope::User(&name), "a", 0);
    assert_eq!(window.begin(&large, Micros(0)), None);
    assert_eq!(window.check(&id, Micros(0)), Lookup::Finished(&reply("0123456789")));
}

#[test]
fn waiters_have_a_cap() {
    let mut window = DedupWindow::new(&settings(), 1);
    let id = plain(&window);
    let key = window.begin(&id, Micros(0)).expect("room");
    for n in 0..WAITERS_MAX as u64 {
        assert!(window.add_waiter(key, msg(n), Micros(0)));
    }
    assert!(!window.add_waiter(key, msg(999), Micros(0)));
    assert_eq!(window.waiting(key), Some(WAITERS_MAX));
    assert_eq!(window.finish(key, None, Micros(0)).len(), WAITERS_MAX);
    check_invariants(&window);
}

#[test]
fn the_same_id_anew_in_every_window_leaves_no_trail() {
    let mut window = DedupWindow::new(&settings(), 1);
    for turn in 0..1000 {
        let now = Micros(turn * WINDOW_US);
        let id = plain(&window);
        let key = window.begin(&id, now).expect("room");
        window.finish(key, Some(reply("x")), now);
        check_invariants(&window);
        assert!(window.finished.len() <= 2 && window.entries.slots() == 1);
    }
}

#[test]
fn short_payloads_do_not_make_up_for_the_message_id() {
    let mut seen = std::collections::HashSet::new();
    for msg_id in 1000..1100 {
        for text in 0..100 {
            assert!(seen.insert(fingerprint(msg_id, format!("{text}").as_bytes())));
            assert!(seen.insert(fingerprint(msg_id, format!("\"user{text:02}\"").as_bytes())));
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// A message comes: its id is looked up, then begun, or the message waits.
    Message {
        id: usize,
        print: u128,
    },
    Finish {
        which: prop::sample::Index,
        reply: Option<usize>,
    },
    Release(prop::sample::Index),
    Wait(u64),
    Expire(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let index = any::<prop::sample::Index>;
    let print = prop_oneof![9 => Just(0u128), 1 => Just(1u128)];
    prop_oneof![
        10 => (0usize..NAMES, print).prop_map(|(id, print)| Op::Message { id, print }),
        6 => (index(), prop::option::of(0usize..150))
            .prop_map(|(which, reply)| Op::Finish { which, reply }),
        2 => index().prop_map(Op::Release),
        4 => (0..WINDOW_US / 2).prop_map(Op::Wait),
        2 => (0usize..4).prop_map(Op::Expire),
    ]
}

struct ModelEntry {
    id: usize,
    print: u128,
    key: DedupKey,
    part: Part,
    waiters: Vec<MsgKey>,
    /// Time of the end, its number among all ends, and the answer if stored.
    end: Option<(u64, u64, Option<StoredReply>)>,
}

/// Model of the window: a list from which expired entries are dropped at once.
struct Model {
    entries: Vec<ModelEntry>,
    entries_max: usize,
    bytes_max: usize,
    ends: u64,
}

impl Model {
    fn drop_expired(&mut self, now: u64) {
        self.entries.retain(|e| e.end.as_ref().is_none_or(|end| now < end.0 + WINDOW_US));
    }

    fn bytes(&self, with_replies: bool) -> usize {
        let entry = |e: &ModelEntry| {
            let stored = e.end.as_ref().and_then(|end| end.2.as_ref());
            let stored = stored.filter(|_| with_replies).map_or(0, |r| REPLY_BYTES + r.size());
            let (_, owner, text) = name(e.id);
            ENTRY_BYTES + owner.len() + text.len() + e.waiters.len() * WAITER_BYTES + stored
        };
        self.entries.iter().map(entry).sum()
    }

    /// Whether the owner of `id` is within its share of what `amount` says of each entry, with
    /// `more`.
    fn is_within(&self, id: usize, more: usize, amount: impl Fn(&ModelEntry) -> usize) -> bool {
        let owner = |id: usize| id & 3;
        let of = |id: usize, mask: usize| -> usize {
            self.entries.iter().filter(|e| (e.id ^ id) & mask == 0).map(&amount).sum()
        };
        let distinct = |mask: usize| {
            let all: BTreeSet<_> = self.entries.iter().map(|e| owner(e.id) & mask).collect();
            all
        };
        let mut tenants = distinct(1);
        let owners = distinct(3).into_iter().filter(|o| (o ^ id) & 1 == 0).count();
        tenants.insert(id & 1);
        let of_tenant = self.bytes_max / tenants.len();
        let own = of(id, 3);
        of(id, 1) + more <= of_tenant && (own == 0 || own + more <= of_tenant / (owners + 1))
    }

    /// The part that an id is taken from, if its owner may have it, and there is room for it.
    fn has_room_for(&mut self, id: usize) -> Option<Part> {
        let room = self.room();
        let holder = |id| holder_of(name(id).0.0, Scope::User(name(id).1));
        let taken = self.entries.iter().map(|e| (holder(e.id), room(e.id), e.part)).collect();
        let part = List { max: self.bytes_max, taken }.part_for(&holder(id), room(id))?;
        let cost = ENTRY_BYTES + name(id).1.len() + name(id).2.len();
        self.make_room(cost, id, room(id), |e| room(e.id)).then_some(part)
    }

    /// Whether a duplicate of `id` may wait.
    fn has_room_for_waiter(&mut self, id: usize) -> bool {
        let room = self.room();
        self.make_room(WAITER_BYTES, id, 0, |e| room(e.id))
    }

    /// Bytes of the stored answer of an entry.
    fn stored(e: &ModelEntry) -> usize {
        let stored = e.end.as_ref().and_then(|end| end.2.as_ref());
        stored.map_or(0, |r| REPLY_BYTES + r.size())
    }

    /// Makes room of `cost` bytes for `id`, whose owner takes `more` of what `amount` says of each
    /// entry.
    fn make_room(
        &mut self,
        cost: usize,
        id: usize,
        more: usize,
        amount: impl Fn(&ModelEntry) -> usize,
    ) -> bool {
        if self.bytes(false) + cost > self.bytes_max {
            return false;
        }
        while self.bytes(true) + cost > self.bytes_max {
            let with_answer = self.entries.iter().filter(|e| Self::stored(e) > 0);
            let oldest = with_answer.min_by_key(|e| e.end.as_ref().map(|end| end.1));
            let oldest = oldest.expect("replies are what is too much").id;
            if (oldest ^ id) & 3 != 0 && !self.is_within(id, more, &amount) {
                return false;
            }
            let mut all = self.entries.iter_mut();
            let entry = all.find(|e| e.id == oldest).expect("there");
            entry.end.as_mut().expect("ended").2 = None;
        }
        true
    }

    /// What an id takes of the room for ids.
    fn room(&self) -> impl Fn(usize) -> usize + use<> {
        let each = self.bytes_max / self.entries_max;
        move |id: usize| (ENTRY_BYTES + name(id).1.len() + name(id).2.len()).max(each)
    }
}

/// Names: two tenants, two owners, [`TEXTS`] ids.
const TEXTS: [&str; 12] =
    ["", "a", "b", "a-rather-long-idempotency-key", "c", "d", "e", "f", "g", "h", "i", "j"];
const NAMES: usize = 4 * TEXTS.len();

fn name(n: usize) -> (TenantId, &'static str, &'static str) {
    let owner = if n & 2 == 0 { "alice" } else { "bob" };
    (TenantId(n as u64 & 1), owner, TEXTS[n >> 2])
}

fn ask(window: &DedupWindow, n: usize, print: u128) -> DedupId<'static> {
    let (tenant, owner, text) = name(n);
    id_of(window, tenant.0, Scope::User(owner), text, print)
}

/// Compares the window with the model for all names.
fn compare(window: &DedupWindow, model: &Model, now: u64) -> Result<(), TestCaseError> {
    for id in 0..NAMES {
        let entry = model.entries.iter().find(|e| e.id == id);
        for print in 0..2 {
            let want = match entry {
                None => Lookup::New,
                Some(e) if e.print != print => Lookup::Mismatch,
                Some(e) => match &e.end {
                    None => Lookup::InFlight(e.key),
                    Some((.., Some(reply))) => Lookup::Finished(reply),
                    Some((.., None)) => Lookup::FinishedNotStored,
                },
            };
            prop_assert_eq!(window.check(&ask(window, id, print), Micros(now)), want);
        }
    }
    check_invariants(window);
    prop_assert!(window.len() <= model.entries_max && window.len() >= model.entries.len());
    prop_assert!(window.finished.len() <= 2 * model.entries_max + 1);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn behaves_as_a_list_of_all_that_is_remembered(
        ops in prop::collection::vec(op(), 1..200),
        entries_max in 1usize..40,
        room in 0usize..20_000,
        seed in any::<u64>(),
    ) {
        let bytes_max = ENTRY_BYTES + room;
        let caps = DedupSettings { entries_max, bytes_max, ..settings() };
        let mut window = DedupWindow::new(&caps, seed);
        let mut model = Model { entries: Vec::new(), entries_max, bytes_max, ends: 0 };
        let (mut now, mut given, mut messages) = (0, Vec::<DedupKey>::new(), 0);
        for op in ops {
            model.drop_expired(now);
            match op {
                Op::Message { id, print } => {
                    let asked = ask(&window, id, print);
                    let at = model.entries.iter().position(|e| e.id == id);
                    if let Lookup::InFlight(key) = window.check(&asked, Micros(now)) {
                        messages += 1;
                        let fits = model.has_room_for_waiter(id);
                        prop_assert_eq!(window.add_waiter(key, msg(messages), Micros(now)), fits);
                        if fits {
                            model.entries[at.expect("seen")].waiters.push(msg(messages));
                        }
                    } else {
                        let is_free = at.is_none() && model.entries.len() < entries_max;
                        let part = is_free.then(|| model.has_room_for(id)).flatten();
                        let key = window.begin(&asked, Micros(now));
                        prop_assert_eq!(key.is_some(), part.is_some());
                        if let (Some(key), Some(part)) = (key, part) {
                            prop_assert!(!given.contains(&key));
                            given.push(key);
                            let (waiters, end) = (vec![], None);
                            model.entries.push(ModelEntry { id, print, key, part, waiters, end });
                        }
                    }
                }
                Op::Finish { which, reply: size } if !given.is_empty() => {
                    let key = given[which.index(given.len())];
                    let answer = size.map(|n| reply(&"x".repeat(n)));
                    let waiters = window.finish(key, answer.clone(), Micros(now));
                    let live = |e: &&mut ModelEntry| e.key == key && e.end.is_none();
                    match model.entries.iter_mut().find(live) {
                        None => prop_assert!(waiters.is_empty()),
                        Some(entry) => {
                            prop_assert_eq!(waiters, std::mem::take(&mut entry.waiters));
                            model.ends += 1;
                            entry.end = Some((now, model.ends, None));
                            let id = entry.id;
                            let answer = answer.filter(|r| r.size() <= caps.reply_bytes_max);
                            if let Some(answer) = answer
                                && let cost = REPLY_BYTES + answer.size()
                                && model.make_room(cost, id, cost, Model::stored)
                            {
                                let mut all = model.entries.iter_mut();
                                let entry = all.find(|e| e.key == key).expect("there");
                                entry.end = Some((now, model.ends, Some(answer)));
                            }
                        }
                    }
                }
                Op::Release(which) if !given.is_empty() => {
                    let key = given[which.index(given.len())];
                    let live = |e: &ModelEntry| e.key == key && e.end.is_none();
                    let want = match model.entries.iter().position(live) {
                        None => Vec::new(),
                        Some(at) => model.entries.remove(at).waiters,
                    };
                    prop_assert_eq!(window.release(key), want);
                }
                Op::Finish { .. } | Op::Release(_) => {}
                Op::Wait(us) => now += us,
                Op::Expire(budget) => window.expire(Micros(now), budget),
            }
            model.drop_expired(now);
            compare(&window, &model, now)?;
        }
        // In the end, every id is finished and expires, and nothing is left.
        for key in given {
            window.finish(key, None, Micros(now));
        }
        window.expire(Micros(now + WINDOW_US), usize::MAX);
        prop_assert_eq!((window.len(), window.bytes(), window.finished.len()), (0, 0, 0));
    }
}
