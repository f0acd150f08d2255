//! The guide on the admin endpoint, in a real browser.

use std::process::Command;

use crate::interop::chromium;
use crate::support::{Checkout, available, run};

/// What the browser makes of the page at `url`, as HTML.
fn dom(checkout: &Checkout, program: &std::path::Path, url: &str) -> String {
    let profile = tempfile::tempdir().expect("a directory");
    let mut command: Command = checkout.shell(&format!(
        "exec {} --headless --no-sandbox --disable-gpu --disable-quic --no-first-run \
         --disable-background-networking --disable-component-update --disable-sync \
         --disable-dev-shm-usage --user-data-dir={} --dump-dom '{url}'",
        program.display(),
        profile.path().display(),
    ));
    run(&mut command)
}

#[test]
fn a_browser_shows_the_guide_and_finds_things_in_it() {
    let test = "a_browser_shows_the_guide_and_finds_things_in_it";
    let program = chromium();
    available(test, "chromium", program.is_some());
    let Some(program) = program else { return };
    let checkout = Checkout::new();
    let gateway = checkout.gateway(&[], &[]);
    let at = |path: &str| format!("http://{}{path}", checkout.address("8000"));
    let list = dom(&checkout, &program, &at("/guide"));
    assert!(list.contains("href=\"/guide/troubleshooting\""), "{list}");
    let page = dom(&checkout, &program, &at("/guide/tls"));
    assert!(page.contains("<h1 id=") && page.contains("name=\"q\""), "{page}");
    let found = dom(&checkout, &program, &at("/guide?q=outbox_bytes_max"));
    assert!(found.contains("href=\"/guide/configuration#"), "{found}");
    assert_eq!(gateway.stop().code(), Some(0));
}
