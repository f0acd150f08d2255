//! The gateway's promises, held against real processes and real sockets: a module a promise.

mod frames;
mod handshake;
mod one_answer;
mod path;
mod bounded;
mod retry;
mod drain;
mod support;
