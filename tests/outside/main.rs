//! Tests with programs that are not part of this repository: the README's commands, clients and
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
