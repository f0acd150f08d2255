//! Tests with programs that are not part of this repository: the commands of the README and the
//! guide, clients and services of other languages, browsers, etcd, Prometheus, systemd. Where one
//! is missing, its test says so in one line.

mod browser;
mod client_library;
mod dashboard;
mod discovery;
mod driver;
mod etcd;
mod interop;
mod libraries;
mod metrics;
mod names;
mod pages;
mod proxies;
mod push;
mod register;
mod restarts;
mod support;
mod systemd;
mod tls;
mod try_page;
