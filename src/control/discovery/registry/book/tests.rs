//! The book against a naive model of it, and its caps.

use proptest::prelude::*;

use super::*;

/// What is done to the book. Callers, services and instances are few, so that they meet.
#[derive(Clone, Debug)]
enum Op {
    Register {
        caller: u8,
        service: u8,
        instance: u8,
        weight: u32,
        ttl_ms: u64,
    },
    Heartbeat {
        caller: u8,
        lease: usize,
        weight: Option<u32>,
        draining: Option<bool>,
    },
    Deregister {
        caller: u8,
        lease: usize,
    },
    /// A caller loses or gets a service.
    Flip {
        caller: u8,
        service: u8,
    },
    Wait {
        ms: u64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let register = (0u8..3, 0u8..2, 0u8..4, 1u32..3, 1u64..40);
    let change = (proptest::option::of(1u32..3), any::<Option<bool>>());
    prop_oneof![
        4 => register.prop_map(|(caller, service, instance, weight, ttl_ms)| Op::Register {
            caller, service, instance, weight, ttl_ms
        }),
        4 => (0u8..3, 0usize..30, change).prop_map(|(caller, lease, (weight, draining))| {
            Op::Heartbeat { caller, lease, weight, draining }
        }),
        2 => (0u8..3, 0usize..30).prop_map(|(caller, lease)| Op::Deregister { caller, lease }),
        1 => (0u8..3, 0u8..2).prop_map(|(caller, service)| Op::Flip { caller, service }),
        4 => (0u64..25).prop_map(|ms| Op::Wait { ms }),
    ]
}

/// A lease in the model.
#[derive(Clone)]
struct Row {
    caller: u8,
    instance: u8,
    lease: usize,
    entry: Entry,
    until: Instant,
}

#[derive(Default)]
struct Model {
    rows: Vec<Row>,
    forbidden: BTreeSet<(u8, u8)>,
    leases: usize,
}

fn text(kind: &str, n: u8) -> Arc<str> {
    format!("{kind}-{n}").into()
}

impl Model {
    fn register(
        &mut self,
        caller: u8,
        instance: u8,
        entry: &Entry,
        now: Instant,
    ) -> Result<(), Refused> {
        for row in &self.rows {
            if row.instance == instance && row.caller != caller {
                return Err(Refused::Taken { by_other_caller: true });
            }
            if row.instance == instance && row.entry.service != entry.service {
                return Err(Refused::Taken { by_other_caller: false });
            }
        }
        self.rows.retain(|row| row.instance != instance);
        let (entry, until) = (entry.clone(), now + entry.ttl);
        self.rows.push(Row { caller, instance, lease: self.leases, entry, until });
        Ok(())
    }

    fn row(&mut self, caller: u8, lease: usize) -> Result<&mut Row, Refused> {
        let forbidden = self.forbidden.clone();
        let row = self.rows.iter_mut().find(|row| row.lease == lease && row.caller == caller);
        let row = row.ok_or(Refused::NotFound)?;
        if forbidden.iter().any(|(c, s)| *c == caller && row.entry.service == text("service", *s)) {
            return Err(Refused::Forbidden(row.entry.service.clone()));
        }
        Ok(row)
    }

    fn known(&self) -> Known {
        let found = |row: &Row| Found {
            service: row.entry.service.clone(),
            name: text("instance", row.instance),
            address: row.entry.address,
            weight: row.entry.weight,
            draining: row.entry.draining,
        };
        let mut instances: Vec<Found> = self.rows.iter().map(found).collect();
        instances.sort_by(|a, b| a.name.cmp(&b.name));
        Known { instances, routes: Vec::new() }
    }
}

fn entry(service: Arc<str>, weight: u32, ttl_ms: u64) -> Entry {
    let address = SocketAddr::from(([10, 0, 0, 1], 7));
    Entry { service, address, weight, draining: false, ttl: Duration::from_millis(ttl_ms) }
}

/// Does `op` to both; whether they agree on the outcome.
fn step(
    book: &mut Book,
    model: &mut Model,
    op: Op,
    now: &mut Instant,
) -> Result<(), TestCaseError> {
    model.rows.retain(|row| row.until > *now);
    let forbidden = model.forbidden.clone();
    let may = |caller: u8| {
        move |service: &str| {
            !forbidden.iter().any(|(c, s)| *c == caller && *text("service", *s) == *service)
        }
    };
    match op {
        Op::Register { caller, service, instance, weight, ttl_ms } => {
            let entry = entry(text("service", service), weight, ttl_ms);
            let expected = model.register(caller, instance, &entry, *now);
            let lease = Lease(model.leases as u128);
            model.leases += 1;
            let (who, name) = (text("caller", caller), text("instance", instance));
            prop_assert_eq!(book.register(&who, &name, entry, lease, *now), expected);
        }
        Op::Heartbeat { caller, lease, weight, draining } => {
            let expected = model.row(caller, lease).map(|row| {
                row.until = *now + row.entry.ttl;
                row.entry.weight = weight.unwrap_or(row.entry.weight);
                row.entry.draining = draining.unwrap_or(row.entry.draining);
                row.entry.ttl
            });
            let (who, lease) = (text("caller", caller), Lease(lease as u128));
            let change = Change { weight, draining };
            prop_assert_eq!(book.heartbeat(&who, lease, change, may(caller), *now), expected);
        }
        Op::Deregister { caller, lease } => {
            let expected = model.row(caller, lease).map(|_| ());
            if expected.is_ok() {
                model.rows.retain(|row| row.lease != lease);
            }
            let (who, lease) = (text("caller", caller), Lease(lease as u128));
            prop_assert_eq!(book.deregister(&who, lease, may(caller), *now), expected);
        }
        Op::Flip { caller, service } => {
            if !model.forbidden.remove(&(caller, service)) {
                model.forbidden.insert((caller, service));
            }
        }
        Op::Wait { ms } => *now += Duration::from_millis(ms),
    }
    Ok(())
}

proptest! {
    #[test]
    fn the_book_does_what_a_list_would_do(ops in proptest::collection::vec(op(), 0..80)) {
        let (mut book, mut model) = (Book::default(), Model::default());
        let (mut now, mut told) = (Instant::now(), Known::default());
        for op in ops {
            step(&mut book, &mut model, op, &mut now)?;
            let before = model.rows.clone();
            model.rows.retain(|row| row.until > now);
            let gone: BTreeSet<Arc<str>> = before
                .iter()
                .filter(|row| row.until <= now)
                .map(|row| text("instance", row.instance))
                .collect();
            prop_assert_eq!(book.expire(now).into_iter().collect::<BTreeSet<_>>(), gone);
            prop_assert_eq!(book.next_end(), model.rows.iter().map(|row| row.until).min());
            // What is told is always the whole, and nothing that changed stays untold.
            if let Some((known, by)) = book.take_change() {
                prop_assert!(!by.is_empty());
                told = known;
            }
            prop_assert_eq!(&told, &model.known());
            // The indices hold what the book holds, and no more.
            prop_assert_eq!(book.by_lease.len(), book.held.len());
            prop_assert_eq!(book.by_end.len(), book.held.len());
            prop_assert_eq!(book.by_caller.values().sum::<usize>(), book.held.len());
        }
    }
}

#[test]
fn caps_hold_for_a_caller_and_for_all_and_an_own_name_is_always_free() {
    let (mut book, now) = (Book::default(), Instant::now());
    let mut lease = 0;
    let mut register = |book: &mut Book, caller: usize, instance: &str, now: Instant| {
        lease += 1;
        let caller = format!("caller-{caller}").into();
        book.register(&caller, instance, entry("logic".into(), 1, 1000), Lease(lease), now)
    };
    let callers = INSTANCES_MAX / CALLER_INSTANCES_MAX;
    for caller in 0..callers {
        for n in 0..CALLER_INSTANCES_MAX {
            register(&mut book, caller, &format!("i-{caller}-{n}"), now).unwrap();
        }
        let one_more = register(&mut book, caller, "more", now);
        assert_eq!(one_more, Err(Refused::Full(CALLER_INSTANCES_MAX)));
    }
    let refused = Err(Refused::Full(INSTANCES_MAX));
    assert_eq!(register(&mut book, callers, "more", now), refused);
    assert_eq!(register(&mut book, 0, "i-0-0", now), Ok(()));
    assert_eq!(register(&mut book, callers, "more", now + Duration::from_secs(1)), Ok(()));
    assert_eq!(book.take_change().map(|(known, _)| known.instances.len()), Some(1));
}

#[test]
fn who_changed_it_is_told_and_a_restart_with_the_same_values_is_no_change() {
    let (mut book, now) = (Book::default(), Instant::now());
    let caller: Arc<str> = "games".into();
    let first = entry("logic".into(), 1, 1000);
    book.register(&caller, "logic-1", first.clone(), Lease(1), now).unwrap();
    let by = |book: &mut Book| book.take_change().map(|(_, by)| by.join("+"));
    assert_eq!(by(&mut book).as_deref(), Some("games"));
    book.register(&caller, "logic-1", first, Lease(2), now).unwrap();
    book.heartbeat(&caller, Lease(2), Change::default(), |_| true, now).unwrap();
    assert_eq!(by(&mut book), None);
    let old = book.deregister(&caller, Lease(1), |_| true, now);
    assert_eq!(old, Err(Refused::NotFound), "the old process cannot remove the new one");
    book.expire(now + Duration::from_secs(1));
    assert_eq!(by(&mut book).as_deref(), Some("games (its lease ran out)"));
}
