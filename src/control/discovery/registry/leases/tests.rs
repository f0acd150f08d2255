//! The leases against a naive model of them, and their caps.

use proptest::prelude::*;

use super::*;

/// An operation on the leases. Callers, services and instances are few, so that they meet.
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
    registration: Registration,
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
        registration: &Registration,
        now: Instant,
    ) -> Result<(), LeaseError> {
        for row in &self.rows {
            if row.instance == instance && row.caller != caller {
                return Err(LeaseError::Taken { by_other_caller: true });
            }
            if row.instance == instance && row.registration.service != registration.service {
                return Err(LeaseError::Taken { by_other_caller: false });
            }
        }
        self.rows.retain(|row| row.instance != instance);
        let (registration, until) = (registration.clone(), now + registration.ttl);
        self.rows.push(Row { caller, instance, lease: self.leases, registration, until });
        Ok(())
    }

    fn row(&mut self, caller: u8, lease: usize) -> Result<&mut Row, LeaseError> {
        let forbidden = self.forbidden.clone();
        let row = self.rows.iter_mut().find(|row| row.lease == lease && row.caller == caller);
        let row = row.ok_or(LeaseError::NotFound)?;
        if forbidden
            .iter()
            .any(|(c, s)| *c == caller && row.registration.service == text("service", *s))
        {
            return Err(LeaseError::Forbidden(row.registration.service.clone()));
        }
        Ok(row)
    }

    fn contents(&self) -> SourceContents {
        let found = |row: &Row| FoundInstance {
            service: row.registration.service.clone(),
            name: text("instance", row.instance),
            addresses: row.registration.address.into(),
            weight: row.registration.weight,
            draining: row.registration.draining,
        };
        let mut instances: Vec<FoundInstance> = self.rows.iter().map(found).collect();
        instances.sort_by(|a, b| a.name.cmp(&b.name));
        SourceContents { instances, ..SourceContents::default() }
    }
}

fn registration(service: Arc<str>, weight: u32, ttl_ms: u64) -> Registration {
    let address = SocketAddr::from(([10, 0, 0, 1], 7));
    Registration { service, address, weight, draining: false, ttl: Duration::from_millis(ttl_ms) }
}

/// Applies `op` to both, and compares the results.
fn step(
    leases: &mut Leases,
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
            let registration = registration(text("service", service), weight, ttl_ms);
            let expected = model.register(caller, instance, &registration, *now);
            let lease = LeaseId(model.leases as u128);
            model.leases += 1;
            let (who, name) = (text("caller", caller), text("instance", instance));
            prop_assert_eq!(leases.register(&who, &name, registration, lease, *now), expected);
        }
        Op::Heartbeat { caller, lease, weight, draining } => {
            let expected = model.row(caller, lease).map(|row| {
                row.until = *now + row.registration.ttl;
                row.registration.weight = weight.unwrap_or(row.registration.weight);
                row.registration.draining = draining.unwrap_or(row.registration.draining);
                row.registration.ttl
            });
            let (who, lease) = (text("caller", caller), LeaseId(lease as u128));
            let change = LeaseUpdate { weight, draining };
            prop_assert_eq!(leases.heartbeat(&who, lease, change, may(caller), *now), expected);
        }
        Op::Deregister { caller, lease } => {
            let expected = model.row(caller, lease).map(|_| ());
            if expected.is_ok() {
                model.rows.retain(|row| row.lease != lease);
            }
            let (who, lease) = (text("caller", caller), LeaseId(lease as u128));
            prop_assert_eq!(leases.deregister(&who, lease, may(caller), *now), expected);
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
        let (mut leases, mut model) = (Leases::default(), Model::default());
        let (mut now, mut told) = (Instant::now(), SourceContents::default());
        for op in ops {
            step(&mut leases, &mut model, op, &mut now)?;
            let before = model.rows.clone();
            model.rows.retain(|row| row.until > now);
            let gone: BTreeSet<Arc<str>> = before
                .iter()
                .filter(|row| row.until <= now)
                .map(|row| text("instance", row.instance))
                .collect();
            prop_assert_eq!(leases.expire(now).into_iter().collect::<BTreeSet<_>>(), gone);
            prop_assert_eq!(leases.next_end(), model.rows.iter().map(|row| row.until).min());
            // A change always holds the whole contents, and none is missing.
            if let Some((contents, by)) = leases.take_change() {
                prop_assert!(!by.is_empty());
                told = contents;
            }
            prop_assert_eq!(&told, &model.contents());
            // The indices hold the same leases, and no more.
            prop_assert_eq!(leases.by_id.len(), leases.by_name.len());
            prop_assert_eq!(leases.by_end.len(), leases.by_name.len());
            prop_assert_eq!(leases.by_caller.values().sum::<usize>(), leases.by_name.len());
        }
    }
}

#[test]
fn caps_hold_for_a_caller_and_for_all_and_an_own_name_is_always_free() {
    let (mut leases, now) = (Leases::default(), Instant::now());
    let mut lease = 0;
    let mut register = |leases: &mut Leases, caller: usize, instance: &str, now: Instant| {
        lease += 1;
        let caller = format!("caller-{caller}").into();
        leases.register(
            &caller,
            instance,
            registration("logic".into(), 1, 1000),
            LeaseId(lease),
            now,
        )
    };
    let callers = INSTANCES_MAX / CALLER_INSTANCES_MAX;
    for caller in 0..callers {
        for n in 0..CALLER_INSTANCES_MAX {
            register(&mut leases, caller, &format!("i-{caller}-{n}"), now).unwrap();
        }
        let one_more = register(&mut leases, caller, "more", now);
        assert_eq!(one_more, Err(LeaseError::Full(CALLER_INSTANCES_MAX)));
    }
    let refused = Err(LeaseError::Full(INSTANCES_MAX));
    assert_eq!(register(&mut leases, callers, "more", now), refused);
    assert_eq!(register(&mut leases, 0, "i-0-0", now), Ok(()));
    assert_eq!(register(&mut leases, callers, "more", now + Duration::from_secs(1)), Ok(()));
    assert_eq!(leases.take_change().map(|(contents, _)| contents.instances.len()), Some(1));
}

#[test]
fn who_changed_it_is_told_and_a_restart_with_the_same_values_is_no_change() {
    let (mut leases, now) = (Leases::default(), Instant::now());
    let caller: Arc<str> = "games".into();
    let first = registration("logic".into(), 1, 1000);
    leases.register(&caller, "logic-1", first.clone(), LeaseId(1), now).unwrap();
    let by = |leases: &mut Leases| leases.take_change().map(|(_, by)| by.join("+"));
    assert_eq!(by(&mut leases).as_deref(), Some("games"));
    leases.register(&caller, "logic-1", first, LeaseId(2), now).unwrap();
    leases.heartbeat(&caller, LeaseId(2), LeaseUpdate::default(), |_| true, now).unwrap();
    assert_eq!(by(&mut leases), None);
    let old = leases.deregister(&caller, LeaseId(1), |_| true, now);
    assert_eq!(old, Err(LeaseError::NotFound), "the old process cannot remove the new one");
    leases.expire(now + Duration::from_secs(1));
    assert_eq!(by(&mut leases).as_deref(), Some("games (its lease ran out)"));
}

#[test]
fn a_pause_of_the_process_ends_no_lease() {
    let (mut leases, now) = (Leases::default(), Instant::now());
    let caller: Arc<str> = "games".into();
    let ttl = Duration::from_millis(1000);
    leases.register(&caller, "a", registration("logic".into(), 1, 1000), LeaseId(1), now).unwrap();
    leases.register(&caller, "b", registration("logic".into(), 1, 2000), LeaseId(2), now).unwrap();
    let resumed = now + Duration::from_secs(600);
    assert!(leases.expire(resumed).is_empty());
    // The heartbeat of one stood in the kernel; the other process is gone.
    let read = resumed + Duration::from_millis(900);
    assert_eq!(
        leases.heartbeat(&caller, LeaseId(1), LeaseUpdate::default(), |_| true, read),
        Ok(ttl)
    );
    let end = resumed + Duration::from_millis(1950);
    assert_eq!(leases.expire(end), ["a".into()], "it has sent no other");
    let other = resumed + Duration::from_millis(2000);
    assert_eq!(leases.next_end(), Some(other), "a second longer than the first");
}
