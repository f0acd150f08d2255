//! The keys of `[limits]`.

use super::reader::Reader;
use super::rule::Bounds;
use super::settings::{ClientLimitSettings, LimitSettings};

/// Largest rate and count of one user or address: more than a shard handles.
const PARTY_MAX: u64 = 1_000_000;
/// Longest burst: one minute. A bucket takes this long to fill, and is kept until it is full, so a
/// longer burst would keep state of clients that left.
const BURST_S_MAX: u64 = 60;

/// Reads the section `[limits]`.
pub fn limits(r: &mut Reader, d: LimitSettings) -> LimitSettings {
    let unknown = Bounds::or_zero("no limit", 1, 1 << crate::ids::SLOT_BITS);
    LimitSettings {
        user: party(
            r,
            [
                "limits.user_connections_max",
                "limits.user_connects_per_s",
                "limits.user_messages_per_s",
            ],
            d.user,
        ),
        address: party(
            r,
            [
                "limits.address_connections_max",
                "limits.address_connects_per_s",
                "limits.address_messages_per_s",
            ],
            d.address,
        ),
        burst_s: r.number("limits.burst_s", d.burst_s, Bounds::new(1, BURST_S_MAX)),
        unauthenticated_max: r.number("limits.unauthenticated_max", d.unauthenticated_max, unknown),
        address_unauthenticated_max: number(
            r,
            "limits.address_unauthenticated_max",
            d.address_unauthenticated_max,
        ),
    }
}

fn party(r: &mut Reader, keys: [&'static str; 3], d: ClientLimitSettings) -> ClientLimitSettings {
    let [connections, connects, messages] = keys;
    ClientLimitSettings {
        connections_max: number(r, connections, d.connections_max),
        connects_per_s: number(r, connects, d.connects_per_s),
        messages_per_s: number(r, messages, d.messages_per_s),
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
        _ => "limits.user_connections_max",
    };
    let rule = "users are clients that signed in, and auth.mode is \"off\": it limits nobody";
    r.warning(key, rule.to_owned());
}
