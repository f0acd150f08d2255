//! Presence: who is there, what members are told of it, and how often (promise 21).

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::config::settings::PresenceKind;

/// Least time between two messages about people, in every test here.
const INTERVAL_MS: u64 = 1_000;
const GRACE_MS: u64 = 2_000;

fn named(names_max: u32) -> GroupRule {
    let presence = PresenceKind::Names;
    GroupRule { presence, names_max, presence_ms: INTERVAL_MS, list: Who::Members, ..room() }
}

fn rig(shards: u16, rule: GroupRule) -> Rig {
    Rig::with(shards, |published| {
        let mut gateway = (*published.gateway).clone();
        gateway.push.groups = vec![Arc::new(rule.clone())];
        published.gateway = Arc::new(gateway);
        published.settings.session.grace_ms = GRACE_MS;
    })
}

impl Rig {
    /// Time goes on, tick by tick.
    fn passes(&mut self, ms: u64) {
        for _ in 0..ms / 10 {
            self.now = self.now.plus_ms(10);
            for shard in &mut self.shards {
                shard.tick(self.now, &mut Vec::new());
                shard.end_turn(self.now);
            }
            self.carry(&BTreeSet::new());
        }
        self.settle();
    }

    /// Carries what shards tell each other once. Lanes of `full` take nothing.
    fn carry(&mut self, full: &BTreeSet<(usize, usize)>) -> bool {
        let mut moved = false;
        for shard in 0..self.shards.len() {
            self.shards[shard].end_turn(self.now);
            self.flush(shard);
            for (to, item) in std::mem::take(&mut self.shards[shard].effects.deliver) {
                moved = true;
                if full.contains(&(shard, usize::from(to.0))) {
                    self.shards[shard].deliver_refused(to, item, self.now);
                } else {
                    self.shards[usize::from(to.0)].on_deliver(item, self.now);
                }
            }
            moved |= self.shards[shard].clients.groups.is_under_way();
        }
        moved
    }

    fn enters(&mut self, client: Client, seq: u64) {
        let payload = r#"{"group":"room:7","presence":true}"#;
        self.says(client, &format!(r#"{{"msg_id":9010,"seq":{seq},"payload":{payload}}}"#));
    }

    /// What a client was told of people: count, who came, who left, whether to read them again.
    fn people(&mut self, client: Client) -> Vec<(u64, usize, usize, bool)> {
        let told = self.told(client).into_iter().filter(|told| told["type"] == "presence");
        told.map(|told| {
            let told = &told["payload"];
            let length = |key: &str| told[key].as_array().unwrap().len();
            let count = told["count"].as_u64().unwrap();
            (count, length("joined"), length("left"), told["reset"].as_bool().unwrap())
        })
        .collect()
    }

    fn list(&mut self, client: Client, seq: u64, more: &str) -> Value {
        let payload = format!(r#"{{"group":"room:7"{more}}}"#);
        self.says(client, &format!(r#"{{"msg_id":9013,"seq":{seq},"payload":{payload}}}"#));
        let told = self.told(client);
        told.into_iter().find(|told| told["seq"] == seq).expect("an answer")
    }
}

#[test]
fn who_breaks_and_comes_back_within_the_grace_was_never_gone() {
    let mut rig = rig(2, named(10));
    let [ann, bob] = [0, 1].map(|shard| rig.open(shard));
    rig.enters(ann, 1);
    rig.passes(20);
    let joined = rig.told(ann);
    assert_eq!(joined[0]["payload"]["count"], 1, "itself");
    assert_eq!(joined[1]["payload"]["joined"][0]["session"].as_str().unwrap().len(), 16);
    rig.says(bob, r#"{"type":"resume","seq":1}"#);
    let resumed = rig.told(bob).remove(0);
    rig.enters(bob, 2);
    assert_eq!(rig.told(bob)[0]["payload"]["count"], 2);
    rig.passes(1_010);
    assert_eq!(rig.people(ann), [(2, 1, 0, false)]);
    let resume = |resumed: &Value, seq: u64| {
        let text = |key: &str| resumed["payload"][key].as_str().unwrap().to_owned();
        let (session, secret) = (text("session"), text("secret"));
        let payload = format!(r#"{{"session":"{session}","secret":"{secret}"}}"#);
        format!(r#"{{"type":"resume","seq":{seq},"payload":{payload}}}"#)
    };
    rig.shards[1].remove(bob.1);
    rig.passes(GRACE_MS - 20);
    let bob = rig.open(1);
    rig.says(bob, &resume(&resumed, 3));
    let resumed = rig.told(bob).remove(0);
    assert_eq!(resumed["payload"]["groups"][0]["count"], 2);
    rig.passes(5_000);
    assert_eq!(rig.people(ann), []);
    rig.shards[1].remove(bob.1);
    rig.passes(GRACE_MS + 20);
    assert_eq!(rig.people(ann), [(1, 0, 1, false)]);
    let bob = rig.open(1);
    rig.says(bob, &resume(&resumed, 4));
    assert_eq!(rig.told(bob)[0]["payload"]["groups"][0]["count"], 2, "still a member");
    rig.passes(2_020);
    assert_eq!(rig.people(ann), [(2, 1, 0, false)]);
}

#[test]
fn a_second_tab_is_no_join_and_its_close_no_leave() {
    let mut rig = rig(1, named(10));
    rig.tenant = TenantId::of("acme");
    let tabs = [0, 0, 0].map(|shard| rig.open(shard));
    for (tab, user) in tabs.into_iter().zip(["ann", "bob", "bob"]) {
        rig.sends(tab, auth(1, &token(user)));
        rig.enters(tab, 2);
        rig.passes(1_020);
    }
    let [ann, one, two] = tabs;
    assert_eq!(rig.people(ann), [(1, 1, 0, false), (2, 1, 0, false)]);
    rig.shards[0].remove(one.1);
    rig.passes(2_020);
    assert_eq!(rig.people(ann), []);
    rig.shards[0].remove(two.1);
    rig.passes(2_020);
    assert_eq!(rig.people(ann), [(1, 0, 1, false)]);
}

#[test]
fn a_crowd_that_joins_in_a_second_costs_each_member_one_frame_a_second() {
    let rule = GroupRule { list: Who::Members, ..named(100) };
    let mut rig = rig(2, rule);
    let first = rig.open(0);
    rig.enters(first, 1);
    let crowd: Vec<Client> = (0..1_000).map(|n| rig.open(n % 2)).collect();
    rig.told(first);
    let join = r#"{"msg_id":9010,"seq":1,"payload":{"group":"room:7","presence":true}}"#;
    let began = rig.now;
    for ten in crowd.chunks(10) {
        for &(shard, id) in ten {
            rig.shards[shard].on_bytes(id, &mut frame(join), rig.now);
        }
        rig.now = rig.now.plus_ms(10);
        rig.shards.iter_mut().for_each(|shard| shard.tick(rig.now, &mut Vec::new()));
        while rig.carry(&BTreeSet::new()) {}
    }
    assert_eq!(rig.now.since(began), 1_000_000);
    rig.passes(2_020);
    let told = rig.people(first);
    assert!(told.len() <= 4, "{told:?}");
    assert_eq!(told.last().map(|told| told.0), Some(1_001));
    assert_eq!(told.iter().filter(|told| told.3).count(), 1, "names end once: {told:?}");
    let late = rig.open(1);
    rig.enters(late, 1);
    assert_eq!(rig.told(late)[0]["payload"]["count"], 1_002);
    let listed = rig.list(late, 2, "");
    assert_eq!(listed["payload"]["members"].as_array().map(Vec::len), Some(0), "too many");
    assert_eq!(listed["payload"]["count"], 1_001);
}

#[test]
fn only_who_asked_is_told_of_people_and_a_count_names_nobody() {
    let rule = GroupRule { presence: PresenceKind::Count, ..named(10) };
    let mut rig = rig(2, rule);
    let [ann, bob] = [0, 1].map(|shard| rig.open(shard));
    rig.enters(ann, 1);
    rig.joins(bob, 1, "room:7");
    rig.passes(1_020);
    let told = rig.people(ann);
    assert_eq!(told.last(), Some(&(2, 0, 0, false)), "{told:?}");
    assert_eq!(rig.people(bob), []);
    assert_eq!(rig.list(bob, 2, "")["payload"]["count"], 2);
    rig.enters(bob, 3);
    rig.shards[0].remove(ann.1);
    rig.passes(2_020);
    assert_eq!(rig.people(bob), [(1, 0, 0, false)]);
}

#[test]
fn the_list_is_read_page_by_page_by_those_who_may() {
    let mut rig = rig(3, named(10));
    let clients: Vec<Client> = (0..5).map(|n| rig.open(n % 3)).collect();
    clients.iter().for_each(|client| rig.enters(*client, 1));
    rig.passes(2_020);
    let (mut after, mut seen) = (String::new(), BTreeSet::new());
    for (seq, length) in [(2, 2), (3, 2), (4, 1)] {
        let page = rig.list(clients[0], seq, &format!(r#","limit":2,"after":"{after}""#));
        let members = page["payload"]["members"].as_array().unwrap().clone();
        assert_eq!((members.len(), &page["payload"]["count"]), (length, &5.into()));
        seen.extend(members.iter().map(|person| person["session"].to_string()));
        after = page["payload"]["next"].as_str().unwrap().to_owned();
    }
    assert_eq!((seen.len(), &*after), (5, ""));
    assert_eq!(rig.list(clients[0], 5, r#","after":"x""#)["reason"], "BAD_MESSAGE");
    let stranger = rig.open(0);
    assert_eq!(rig.list(stranger, 1, "")["reason"], "FORBIDDEN");
}

#[test]
fn nothing_is_known_of_people_where_the_rule_says_off() {
    let rule = GroupRule { presence: PresenceKind::Off, ..named(10) };
    let mut rig = rig(2, rule);
    let ann = rig.open(1);
    rig.enters(ann, 1);
    assert_eq!(rig.told(ann)[0]["payload"]["count"], 0);
    rig.passes(1_020);
    assert_eq!(rig.people(ann), []);
    assert_eq!(rig.list(ann, 2, "")["reason"], "FORBIDDEN");
}

/// A client that keeps a view of the people by what it is told.
#[derive(Default)]
struct Viewer {
    shard: usize,
    at: Option<Client>,
    seq: u64,
    /// The answer to its last resume.
    resumed: Value,
    is_member: bool,
    people: BTreeSet<String>,
    count: u64,
    /// Numbers of its questions who is there, and whether it is to ask again.
    asked: Option<u64>,
    is_old: bool,
    /// When it was told of people last.
    told_at: Option<Micros>,
}

fn ids(list: &Value) -> Vec<String> {
    let list = list.as_array().into_iter().flatten();
    list.map(|person| person["session"].as_str().unwrap().to_owned()).collect()
}

impl Viewer {
    fn says(&mut self, rig: &mut Rig, what: &str) {
        let Some((shard, id)) = self.at else { return };
        self.seq += 1;
        let text = format!(r#"{{"seq":{},{what}}}"#, self.seq);
        rig.shards[shard].on_bytes(id, &mut frame(&text), rig.now);
    }

    fn begins(&mut self, rig: &mut Rig) {
        let peer = ([127, 0, 0, 1], 1).into();
        let id = rig.shards[self.shard].open(peer, rig.now).expect("room");
        let mut request = REQUEST.as_bytes().to_vec();
        rig.shards[self.shard].on_bytes(id, &mut request, rig.now);
        self.at = Some((self.shard, id));
        let text = |key: &str| self.resumed[key].as_str().unwrap_or_default();
        let payload =
            format!(r#"{{"session":"{}","secret":"{}"}}"#, text("session"), text("secret"));
        self.says(rig, &format!(r#""type":"resume","payload":{payload}"#));
        self.reads(rig);
    }

    fn breaks(&mut self, rig: &mut Rig) {
        if let Some((shard, id)) = self.at.take() {
            rig.inbox.remove(&(shard, id));
            rig.shards[shard].remove(id);
        }
        self.asked = None;
    }

    /// Takes what came, and asks who is there when it has to.
    fn reads(&mut self, rig: &mut Rig) {
        let Some(at) = self.at else { return };
        for told in rig.told(at) {
            let payload = &told["payload"];
            match (told["type"].as_str().unwrap_or_default(), told["msg_id"].as_u64()) {
                ("resumed", _) => {
                    self.is_member = payload["groups"].as_array().is_some_and(|g| !g.is_empty());
                    self.is_old = true;
                    self.resumed = payload.clone();
                }
                ("presence", _) => {
                    let since = self.told_at.map(|at| rig.now.since(at));
                    assert!(since.is_none_or(|us| us >= INTERVAL_MS * 1_000), "{since:?}");
                    self.told_at = Some(rig.now);
                    self.is_old |= payload["reset"] == true;
                    self.count = payload["count"].as_u64().unwrap();
                    self.people.extend(ids(&payload["joined"]));
                    let left = ids(&payload["left"]);
                    self.people.retain(|id| !left.contains(id));
                }
                ("", Some(9010)) => {
                    self.is_member = true;
                    self.is_old = true;
                }
                ("", Some(9011)) => self.is_member = false,
                ("", Some(9013)) if told["seq"].as_u64() == self.asked => {
                    self.asked = None;
                    self.people = ids(&payload["members"]).into_iter().collect();
                    self.count = payload["count"].as_u64().unwrap_or(0);
                }
                // A lane had no room for the question: it is asked once more.
                ("error", _) if told["seq"].as_u64() == self.asked => {
                    (self.asked, self.is_old) = (None, true);
                }
                _ => {}
            }
        }
        if self.is_member && self.is_old && self.asked.is_none() {
            self.says(rig, r#""msg_id":9013,"payload":{"group":"room:7"}"#);
            (self.asked, self.is_old) = (Some(self.seq), false);
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Join(usize),
    Leave(usize),
    Break(usize),
    Back(usize),
    Pass(u64),
    Fill(usize, usize),
    Drain,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0usize..7).prop_map(Op::Join),
        3 => (0usize..7).prop_map(Op::Leave),
        3 => (0usize..7).prop_map(Op::Break),
        4 => (0usize..7).prop_map(Op::Back),
        6 => prop::sample::select(vec![10, 200, 990, 1_000, 2_500]).prop_map(Op::Pass),
        2 => (0usize..3, 0usize..3).prop_map(|(from, to)| Op::Fill(from, to)),
        2 => Just(Op::Drain),
    ]
}

/// Lets everything happen that happens without time, and clients read.
fn goes_on(rig: &mut Rig, viewers: &mut [Viewer], full: &BTreeSet<(usize, usize)>) {
    for _ in 0..6 {
        rig.carry(full);
        viewers.iter_mut().for_each(|viewer| viewer.reads(rig));
    }
}

fn passes(rig: &mut Rig, viewers: &mut [Viewer], full: &BTreeSet<(usize, usize)>, ms: u64) {
    for _ in 0..ms / 10 {
        rig.now = rig.now.plus_ms(10);
        rig.shards.iter_mut().for_each(|shard| shard.tick(rig.now, &mut Vec::new()));
        goes_on(rig, viewers, full);
    }
    for shard in &rig.shards {
        shard.check_invariants().expect("consistent");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn when_nothing_changes_for_two_intervals_every_view_is_the_truth(
        ops in prop::collection::vec(op(), 1..40),
        names_max in prop::sample::select(vec![3u32, 100]),
    ) {
        let mut rig = rig(3, named(names_max));
        let mut viewers: Vec<Viewer> =
            (0..7).map(|n| Viewer { shard: n % 3, ..Viewer::default() }).collect();
        viewers.iter_mut().for_each(|viewer| viewer.begins(&mut rig));
        let mut full = BTreeSet::new();
        for op in ops {
            match op {
                Op::Join(n) => {
                    let payload = r#"{"group":"room:7","presence":true}"#;
                    viewers[n].says(&mut rig, &format!(r#""msg_id":9010,"payload":{payload}"#));
                }
                Op::Leave(n) => {
                    viewers[n].says(&mut rig, r#""msg_id":9011,"payload":{"group":"room:7"}"#);
                }
                Op::Break(n) => viewers[n].breaks(&mut rig),
                Op::Back(n) if viewers[n].at.is_none() => viewers[n].begins(&mut rig),
                Op::Back(_) => {}
                Op::Pass(ms) => passes(&mut rig, &mut viewers, &full, ms),
                Op::Fill(from, to) => full.extend([(from, to)]),
                Op::Drain => full.clear(),
            }
            goes_on(&mut rig, &mut viewers, &full);
        }
        full.clear();
        // The last change is that of who is away; a lane that was full is tried an interval later.
        passes(&mut rig, &mut viewers, &full, GRACE_MS + INTERVAL_MS);
        passes(&mut rig, &mut viewers, &full, 2 * INTERVAL_MS + 50);
        let group = |shard: &Engine| {
            let group = shard.clients.groups.find(&name("room:7"))?;
            let people = shard.clients.groups.get(group)?.roster.as_deref()?.people();
            Some(people.keys().map(|person| format!("{person:?}")).collect::<Vec<_>>())
        };
        let truth: Vec<String> = rig.shards.iter().filter_map(group).flatten().collect();
        let there: BTreeMap<&str, &Viewer> = viewers.iter().filter(|viewer| viewer.is_member)
            .filter(|viewer| viewer.at.is_some())
            .map(|viewer| (viewer.resumed["session"].as_str().unwrap(), viewer))
            .collect();
        prop_assert_eq!(there.len(), truth.len(), "{:?}", truth);
        for (id, viewer) in &there {
            prop_assert_eq!(viewer.count, truth.len() as u64, "{}", id);
            let known: BTreeSet<&str> = viewer.people.iter().map(|id| &**id).collect();
            match truth.len() <= names_max as usize {
                true => prop_assert_eq!(known, there.keys().copied().collect::<BTreeSet<_>>()),
                false => prop_assert!(known.is_empty()),
            }
        }
    }
}
