//! Configuration: raw files -> checked settings and a versioned snapshot.
pub mod ring;
pub mod settings;
pub mod snapshot;
