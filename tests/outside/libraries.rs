//! Client libraries and runtimes of other authors, each as its user calls it: with its defaults,
//! and with an empty list where it takes one. Each asks, gets its answer, and closes with 1000.

use crate::support::{Checkout, available, run, succeeds};

/// Runs a line of `tests/interop` with the gateway's URL behind it.
fn converses(line: &str) {
    let checkout = Checkout::new();
    let gateway = checkout.gateway(&[], &["logic"]);
    let mut command = checkout.shell(&format!("{line} {}", checkout.url()));
    // Nothing is fetched, and nothing is left in the home directory.
    command.env("DENO_DIR", checkout.path()).env("DENO_NO_UPDATE_CHECK", "1");
    command.env("DO_NOT_TRACK", "1").env("BUN_INSTALL_CACHE_DIR", checkout.path());
    let said = run(&mut command);
    assert!(said.contains("all as it should be"), "{line}: {said}");
    assert_eq!(gateway.stop().code(), Some(0));
}

fn python(test: &str, package: &str, module: &str) {
    let found = succeeds("python3", &["-c", &format!("import {module}")]);
    if available(test, &format!("python3 with {package}"), found) {
        converses(&format!("python3 tests/interop/libraries.py {package}"));
    }
}

#[test]
fn python_aiohttp_asks_and_closes() {
    python("python_aiohttp_asks_and_closes", "aiohttp", "aiohttp");
}

#[test]
fn python_websocket_client_asks_and_closes() {
    python("python_websocket_client_asks_and_closes", "websocket-client", "websocket._abnf");
}

#[test]
fn python_tornado_asks_and_closes() {
    python("python_tornado_asks_and_closes", "tornado", "tornado.websocket");
}

#[test]
fn python_websockets_asks_and_closes() {
    python("python_websockets_asks_and_closes", "websockets", "websockets.asyncio.client");
}

fn node(test: &str, package: &str) {
    let found = succeeds("node", &["-e", &format!("require('{package}')")]);
    if available(test, &format!("node with {package} (NODE_PATH)"), found) {
        // Node looks for packages beside the script's real path otherwise.
        let options = "--preserve-symlinks-main";
        converses(&format!("node {options} tests/interop/libraries.cjs {package}"));
    }
}

#[test]
fn node_ws_asks_and_closes() {
    node("node_ws_asks_and_closes", "ws");
}

/// Node's own WebSocket, which is that of undici.
#[test]
fn node_undici_asks_and_closes() {
    node("node_undici_asks_and_closes", "undici");
}

/// Path of a program that npm installed, or its name.
fn program(name: &str) -> String {
    let packages = std::env::var("NODE_PATH").unwrap_or_default();
    let mut installed = std::env::split_paths(&packages).map(|dir| dir.join(".bin").join(name));
    installed
        .find(|path| path.exists())
        .map_or_else(|| name.to_owned(), |path| path.display().to_string())
}

#[test]
fn bun_asks_and_closes() {
    let bun = program("bun");
    let found = succeeds(&bun, &["--version"]);
    if available("bun_asks_and_closes", "bun (npm package bun)", found) {
        converses(&format!("{bun} --no-install tests/interop/libraries.cjs global"));
    }
}

#[test]
fn deno_asks_and_closes() {
    let deno = program("deno");
    let found = succeeds(&deno, &["--version"]);
    if available("deno_asks_and_closes", "deno (npm package deno)", found) {
        let options = "run --no-config --cached-only --allow-net=127.0.0.1 --allow-read";
        converses(&format!("{deno} {options} tests/interop/libraries.cjs global"));
    }
}
