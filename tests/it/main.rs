//! The gateway's promises, held against real processes and real sockets: a module a promise.

mod admin;
mod auth;
mod boot;
mod bounded;
mod dedup;
mod discovery;
mod drain;
mod frames;
mod handshake;
mod head_of_line;
mod health;
mod home;
mod limits;
mod no_batching_delay;
mod one_answer;
mod order;
mod path;
mod proxy;
mod reload;
mod retry;
mod stats;
mod supervise;
mod support;
mod tidy;
mod tls;
mod verbs;
