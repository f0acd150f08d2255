//! The keys of `[session]` and `[limits]`.

use super::reader::Reader;
use super::rule::Bounds;
use super::settings::{ClientLimitSettings, LimitSettings, PerUser};

/// Largest rate and count of one user or address: more than a shard handles.
const PARTY_MAX: u64 = 1_000_000;
/// Longest burst: one minute. A bucket takes this long to fill, and is kept until it is full, so a
/// longer burst would keep state of clients that left.
const BURST_S_MAX: u64 = 60;

/// Values of `session.per_user`.
const PER_USER: [(&str, PerUser); 3] =
    [("many", PerUser::Many), ("newest", PerUser::Newest), ("oldest", PerUser::Oldest)];

/// Reads the sections `[session]` and `[limits]`.
pub fn limits(r: &mut Reader, d: LimitSettings) -> LimitSettings {
    let unknown = Bounds::or_zero("no limit", 1, 1 << crate::ids::SLOT_BITS);
    let per_user = r.word("session.per_user", d.per_user, &PER_USER);
    let per_user_max = number(r, "session.per_user_max", d.user.connections_max);
    LimitSettings {
        user: ClientLimitSettings {
            connections_max: per_user.connections_max(per_user_max),
            connects_per_s: number(r, "limits.user_connects_per_s", d.user.connects_per_s),
            messages_per_s: number(r, "limits.user_messages_per_s", d.user.messages_per_s),
        },
        per_user,
        address: ClientLimitSettings {
            connections_max: number(r, "limits.address_connections_max", d.address.connections_max),
            connects_per_s: number(r, "limits.address_connects_per_s", d.address.connects_per_s),
            messages_per_s: number(r, "limits.address_messages_per_s", d.address.messages_per_s),
        },
        burst_s: r.number("limits.burst_s", d.burst_s, Bounds::new(1, BURST_S_MAX)),
        unauthenticated_max: r.number("limits.unauthenticated_max", d.unauthenticated_max, unknown),
        address_unauthenticated_max: number(
            r,
            "limits.address_unauthenticated_max",
            d.address_unauthenticated_max,
        ),
    }
}

fn number(r: &mut Reader, key: &'static str, default: u32) -> u32 {
    r.number(key, default, Bounds::or_zero("no limit", 1, PARTY_MAX))
}

/// Warns about limits of users while nobody can sign in: they limit nobody.
pub fn without_users(r: &mut Reader, limits: &LimitSettings, sign_in: bool) {
    let ClientLimitSettings { connections_max, connects_per_s, .. } = limits.user;
    let key = match (connections_max, connects_per_s) {
        _ if sign_in || !limits.user.is_on() => return,
        (0, 0) => "limits.user_messages_per_s",
        (0, _) => "limits.user_connects_per_s",
        // One connection is what the policy means without a number.
        (1, _) if limits.per_user != PerUser::Many => "session.per_user",
        _ => "session.per_user_max",
    };
    let rule = "users are clients that signed in, and auth.mode is \"off\": it limits nobody";
    r.warning(key, rule.to_owned());
}
