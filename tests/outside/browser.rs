//! A real browser, and the guide of the admin endpoint in it.

use std::path::{Path, PathBuf};

use crate::support::{Checkout, available, run};

/// Path of Chromium, or of a browser made of it.
pub fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let mut all = names.iter().flat_map(|name| dirs.iter().map(move |dir| dir.join(name)));
    all.find(|program| program.is_file())
}

/// Shell command that runs the browser without a window and without a word to other hosts.
pub fn headless(program: &Path, profile: &Path, page: &str) -> String {
    format!(
        "exec {} --headless --no-sandbox --disable-gpu --disable-quic --no-first-run \
         --disable-background-networking --disable-component-update --disable-sync \
         --disable-dev-shm-usage --user-data-dir={} {page}",
        program.display(),
        profile.display(),
    )
}

/// The page at `url` after the browser has read it, as HTML.
fn dom(checkout: &Checkout, program: &Path, url: &str) -> String {
    let profile = tempfile::tempdir().expect("a directory");
    let page = format!("--dump-dom '{url}'");
    run(&mut checkout.shell(&headless(program, profile.path(), &page)))
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
