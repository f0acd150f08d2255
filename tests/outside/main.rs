//! What people use with the gateway and we did not write: the README's commands, and clients and
//! services of other languages, etcd, Prometheus, systemd. Where one is missing, its test says so
//! in one line.

mod discovery;
mod etcd;
mod interop;
mod metrics;
mod readme;
mod register;
mod support;
mod systemd;
mod tls;
