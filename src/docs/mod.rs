//! Pages about the whole: what the gateway promises, what it says on the wire, what its words mean,
//! and why it is built as it is. Only documentation; the map of the source is the crate's own page.

/// The twelve promises that comments and tests cite by number, their tests, and the caps.
#[doc = include_str!("promises.md")]
pub mod promises {}

/// The wire: client protocol, service protocol, statistics that tools rely on.
#[doc = include_str!("formats.md")]
pub mod formats {}

/// The glossary.
#[doc = include_str!("words.md")]
pub mod words {}

/// Choices that a newcomer would question, with reasons and figures.
#[doc = include_str!("decisions.md")]
pub mod decisions {}
