//! The gateway's promises, held against real processes and real sockets: a module a promise.

mod path;
mod support;
