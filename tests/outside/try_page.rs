//! The try-it page of the admin endpoint in a real browser.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::browser::chromium;
use crate::driver::Browser;
use crate::support::{Checkout, available};

/// The browser, if there is one here.
pub fn found(test: &str) -> Option<PathBuf> {
    let program = chromium();
    available(test, "chromium", program.is_some());
    program
}

/// Opens the page.
fn try_page(browser: &mut Browser, url: &str) {
    browser.open(url, "#url-hint", "listens");
}

#[test]
fn a_person_connects_sends_cuts_the_line_and_sees_the_session_come_back() {
    let test = "a_person_connects_sends_cuts_the_line_and_sees_the_session_come_back";
    let Some(program) = found(test) else { return };
    let checkout = Checkout::new();
    let gateway = checkout.gateway(&[], &["logic"]);
    let mut browser = Browser::start(&program);
    browser.show(1280, "light");
    try_page(&mut browser, &format!("http://{}/", checkout.address("8000")));
    assert_eq!(browser.value("document.querySelector('#url').value"), checkout.url());
    browser.click("#open");
    browser.wait_for("#state", "connected");
    browser.click("#send");
    browser.wait_for("#last-status", "OK");
    browser.wait_for("#last-payload", "hello");
    let session = browser.text("#session");
    assert_eq!(session.len(), 16, "{session}");
    browser.click("#cut");
    browser.wait_for("#outcome", "resumed");
    assert_eq!(browser.text("#session"), session, "the same session goes on");
    browser.wait_for("#log", "resumed");
    browser.click("#send");
    browser.wait_for("#counts", "2 sent, 2 answered, 0 waiting");
    // Requests of the time without a line are answered after it.
    browser.click("#offline");
    browser.wait_for("#state", "offline");
    browser.click("#send");
    browser.wait_for("#counts", "3 sent, 2 answered, 1 waiting");
    browser.wait_for("#counts", "3 sent, 3 answered, 0 waiting");
    assert_eq!(browser.text("#session"), session);
    for (width, scheme) in [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")] {
        browser.show(width, scheme);
        assert!(browser.fits(), "{width}");
        browser.picture(&format!("try-page-{width}-{scheme}"));
    }
    browser.click("#close");
    browser.wait_for("#state", "closed");
    assert_eq!(browser.complaints, Vec::<Value>::new());
    assert_eq!(gateway.stop().code(), Some(0));
}

#[test]
fn two_tabs_chat_in_a_room_and_who_was_cut_off_has_missed_nothing() {
    let test = "two_tabs_chat_in_a_room_and_who_was_cut_off_has_missed_nothing";
    let Some(program) = found(test) else { return };
    let checkout = Checkout::new();
    let gateway = checkout.gateway(&[], &["chat"]);
    let mut browser = Browser::start(&program);
    let url = format!("http://{}/", checkout.address("8000"));
    try_page(&mut browser, &url);
    // Joining connects by itself.
    browser.click("#enter");
    browser.wait_for("#group-position", "room:lobby");
    let first = &mut browser.new_tab();
    try_page(&mut browser, &url);
    browser.click("#enter");
    browser.wait_for("#group-position", "room:lobby");
    // By the keyboard alone, and as text, whatever it says.
    browser.fill("#words", "hello <img src=x onerror=alert(1)>");
    browser.press_enter();
    browser.wait_for("#room", "you hello <img src=x");
    browser.turn_to(first);
    browser.wait_for("#room", "hello <img src=x");
    assert_eq!(browser.value("document.querySelectorAll('main img').length"), 0);
    assert!(browser.text("#room").contains("guest "), "{}", browser.text("#room"));
    // Through the service chat, which reads what is said.
    browser.value("document.querySelector('#way').value = 'service'");
    browser.fill("#words", "by the service");
    browser.click("#tell");
    browser.wait_for("#room", "you by the service");
    browser.turn_to(first);
    browser.wait_for("#room", "by the service");
    browser.wait_for("#group-position", "offset 2");
    browser.click("#offline");
    browser.wait_for("#state", "offline");
    browser.turn_to(first);
    for line in ["one", "two", "three"] {
        browser.fill("#words", line);
        browser.press_enter();
        browser.wait_for("#room", line);
    }
    browser.turn_to(first);
    assert!(!browser.text("#room").contains("three"), "nothing comes while it is offline");
    browser.wait_for("#group-position", "offset 5");
    browser.wait_for("#outcome", "resumed");
    browser.wait_for("#log", "room:lobby: resumed");
    let lines = "[...document.querySelectorAll('#room .offset')].map((line) => line.innerText)";
    assert_eq!(browser.value(lines), json!(["#1", "#2", "#3", "#4", "#5"]));
    for (width, scheme) in [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")] {
        browser.show(width, scheme);
        assert!(browser.fits(), "{width}");
        browser.picture(&format!("room-{width}-{scheme}"));
    }
    browser.click("#enter");
    browser.wait_for("#enter", "Join");
    browser.wait_for("#room", "you left room:lobby");
    browser.fill("#group", "nobody:1");
    browser.click("#enter");
    browser.wait_for("#group-hint", "FORBIDDEN");
    assert_eq!(browser.complaints, Vec::<Value>::new());
    assert_eq!(gateway.stop().code(), Some(0));
}

#[test]
fn mistakes_are_told_where_they_are_made_and_refusals_with_their_reason() {
    let test = "mistakes_are_told_where_they_are_made_and_refusals_with_their_reason";
    let Some(program) = found(test) else { return };
    let checkout = Checkout::new();
    let gateway = checkout.gateway(&[], &["logic"]);
    let mut browser = Browser::start(&program);
    browser.show(360, "light");
    try_page(&mut browser, &format!("http://localhost:{}/", checkout.address("8000").port()));
    browser.fill("#payload", "{\"text\": ");
    browser.click("#send");
    browser.wait_for("#payload-hint", "JSON");
    assert_eq!(browser.value("document.activeElement.id"), "payload");
    // "Send" connects by itself, also from a page at localhost.
    browser.fill("#payload", "{\"fail\": 9}");
    browser.click("#send");
    browser.wait_for("#last-status", "FAILED_PRECONDITION");
    browser.fill("#msg-id", "77");
    browser.click("#send");
    browser.wait_for("#last", "NO_ROUTE");
    // What comes from elsewhere is text, whatever it says.
    browser.fill("#msg-id", "1001");
    browser.fill("#payload", "\"<img src=x onerror=alert(1)>\"");
    browser.click("#send");
    browser.wait_for("#last-payload", "<img src=x");
    assert_eq!(browser.value("document.querySelectorAll('main img').length"), 0);
    let unnamed = "[...document.querySelectorAll('input, select, textarea')]\
                   .filter((field) => !field.labels.length).map((field) => field.id)";
    assert_eq!(browser.value(unnamed), json!([]));
    // The log has a bound, however much is said.
    browser.value("for (let n = 0; n < 250; n++) document.querySelector('#send').click()");
    browser.wait_for("#counts", "253 sent");
    browser.wait_for("#counts", ", 0 waiting");
    assert_eq!(browser.value("document.querySelector('#log').childElementCount"), 200);
    assert_eq!(browser.complaints, Vec::<Value>::new());
    assert_eq!(gateway.stop().code(), Some(0));
}
