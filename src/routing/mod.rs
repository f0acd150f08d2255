//! Routing of messages: the ranges of ids that name a service, the hash that a route takes of a
//! message, the ring of instances on which the hash is looked up, and the share of its keys that
//! each instance gets. Plain data and pure functions. Configuration makes the first [`Snapshot`],
//! control composes the later ones, and the engine routes by them.

mod addresses;
pub mod addressing;
mod affinity;
pub mod quota;
mod ring;
mod share;
mod snapshot;
mod tenants;

pub use addresses::Addresses;
pub use affinity::{Described, HashedBy, Sender, affinity, affinity_hash};
pub use quota::Quota;
pub use ring::Ring;
pub use share::{Share, choose};
pub use snapshot::{
    Failover, HashOn, Instance, Mode, Order, PayloadKind, Route, Service, Snapshot,
};
pub use tenants::{CountedOne, OTHER_TENANTS, SharedCount, Tenant, TenantTable};
