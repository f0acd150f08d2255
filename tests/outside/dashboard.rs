//! The dashboard in a real browser, by the keyboard alone: five faults are found by what it shows,
//! and an instance is drained with two questions.

mod faults;
mod place;

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use self::place::{Place, TOKEN};
use crate::driver::Browser;
use crate::support::get_json;
use crate::try_page::found;

/// Opens the dashboard, and waits until it has rows.
fn open(browser: &mut Browser, place: &Place) {
    browser.show(1280, "light");
    browser.open(&format!("http://{}/ui", place.admin), "#traffic .told", "/s");
}

/// Pictures on both screens, light and dark; nothing is scrolled sideways.
fn pictures(browser: &mut Browser, name: &str) {
    for (width, scheme) in [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")] {
        browser.show(width, scheme);
        assert!(browser.fits(), "{name}: {width}");
        browser.picture(&format!("dashboard-{name}-{width}-{scheme}"));
    }
    browser.show(1280, "light");
}

/// The dashboard complained of nothing, and the gateway ends in order.
fn end(browser: &Browser, place: Place) {
    assert_eq!(browser.complaints, Vec::<Value>::new());
    place.end();
}

#[test]
fn who_has_only_a_keyboard_reads_the_charts_explains_drains_and_reloads() {
    let test = "who_has_only_a_keyboard_reads_the_charts_explains_drains_and_reloads";
    let Some(program) = found(test) else { return };
    let place = Place::start(|demo| place::two_of_logic(demo.logic, demo.chat), "");
    let load = place.load();
    let mut browser = Browser::start(&program);
    open(&mut browser, &place);
    browser.wait_for("#status", "ok: all is well");
    // Past the links by the first of them, as who reads by the key Tab does.
    browser.press("Tab");
    assert_eq!(browser.value("document.activeElement.className"), "skip");
    browser.press_enter();
    // Single seconds of a chart, in all charts.
    browser.tab_to("#traffic svg");
    browser.wait_for("#about", "node");
    browser.press("Home");
    browser.wait_for("#traffic .told", "s ago: in");
    browser.wait_for("#conns .told", "s ago: open");
    browser.press("Escape");
    let label = "document.querySelector('#traffic svg').getAttribute('aria-label')";
    let label = browser.value(label).to_string();
    assert!(label.contains("Messages in, answers, errors. in ") && label.contains("At most"));
    drains_by_keys(&mut browser, &place);
    browser.tab_to("#explain-key");
    browser.type_text("room:7");
    browser.press_enter();
    browser.wait_for("#explained .chip", "goes to logic-1");
    browser.tab_to("#reload");
    browser.press_enter();
    browser.wait_for("#ask-title", "Reload");
    browser.tab_to("#ask-yes");
    browser.press_enter();
    browser.tab_to("#ask-yes");
    browser.press_enter();
    browser.wait_for("#done", "Reloaded: 0 settings changed");
    drop(load);
    assert_eq!(nameless(&mut browser), json!([]));
    let stored = "localStorage.length + sessionStorage.length + document.cookie.length";
    assert_eq!(browser.value(stored), 0, "the token is kept in memory only");
    pictures(&mut browser, "well");
    // The wrong token was refused, which the browser notes.
    let refused = browser.complaints.iter().all(|c| c.to_string().contains("401"));
    assert!(refused && browser.complaints.len() == 1, "{:?}", browser.complaints);
    browser.complaints.clear();
    end(&browser, place);
}

/// An instance is drained: two questions, and the token.
fn drains_by_keys(browser: &mut Browser, place: &Place) {
    browser.tab_to("#instances [data-key='logic-2'] button");
    browser.press_enter();
    browser.wait_for("#ask-title", "Drain logic-2?");
    assert_eq!(browser.value("document.activeElement.id"), "ask-token");
    browser.type_text("a wrong token");
    browser.press_enter();
    browser.wait_for("#ask-text", "1 other instance takes the messages of logic");
    assert_eq!(browser.value("document.activeElement.id"), "ask-no", "Enter does not go on");
    browser.tab_to("#ask-yes");
    browser.press_enter();
    browser.wait_for("#done", "Not done: this path needs the token");
    browser.tab_to("#instances [data-key='logic-2'] button");
    browser.press_enter();
    browser.type_text(TOKEN);
    browser.press_enter();
    browser.press("Escape");
    assert_eq!(browser.value("document.querySelector('#ask').open"), false);
    assert_eq!(draining(place), [false, false], "nothing was confirmed");
    browser.tab_to("#instances [data-key='logic-2'] button");
    browser.press_enter();
    assert_eq!(browser.value("document.querySelector('#ask-token-field').hidden"), true);
    browser.tab_to("#ask-yes");
    browser.press_enter();
    browser.tab_to("#ask-yes");
    browser.press_enter();
    browser.wait_for("#done", "logic-2 gets no new messages");
    browser.wait_for("#instances [data-key='logic-2']", "draining");
    assert_eq!(draining(place), [false, true]);
}

/// Whether each instance of logic is drained.
fn draining(place: &Place) -> Vec<Value> {
    let services = get_json(place.admin, "/services");
    let instances = services["services"]["logic"]["instances"].as_array().expect("a list");
    instances.iter().map(|instance| instance["draining"].clone()).collect()
}

/// Fields, buttons and pictures that have no name for who cannot see them.
fn nameless(browser: &mut Browser) -> Value {
    let all = "[...document.querySelectorAll('input, button, svg, section, [role=region]')]";
    let has_name = "e.labels?.length || e.ariaLabel \
                    || e.textContent.trim() && e.tagName == 'BUTTON' \
                    || document.getElementById(e.getAttribute('aria-labelledby'))";
    browser.value(&format!("{all}.filter((e) => !({has_name})).map((e) => e.outerHTML)"))
}

#[test]
fn elsewhere_than_on_loopback_it_asks_for_the_token_and_forgets_a_wrong_one() {
    let test = "elsewhere_than_on_loopback_it_asks_for_the_token_and_forgets_a_wrong_one";
    let Some(program) = found(test) else { return };
    let place = Place::guarded(Ipv4Addr::UNSPECIFIED);
    let mut browser = Browser::start(&program);
    browser.take_any_certificate();
    browser.show(1280, "dark");
    let url = format!("https://127.0.0.1:{}/ui", place.admin.port());
    browser.open(&url, "#status", "it asks for the token");
    browser.picture("dashboard-guarded");
    let told = browser.value("document.querySelector('#no-reasons').checkVisibility()");
    assert_eq!(told, false, "what is not known is not told");
    browser.tab_to("#unlock-token");
    browser.type_text("wrong");
    browser.press_enter();
    browser.wait_for("#status", "it asks for the token");
    browser.tab_to("#unlock-token");
    browser.type_text(TOKEN);
    browser.press_enter();
    browser.wait_for("#status", "ok: all is well");
    assert_eq!(browser.value("document.querySelector('#unlock').hidden"), true);
    let refused = browser.complaints.iter().all(|c| c.to_string().contains("401"));
    assert!(refused, "{:?}", browser.complaints);
    // A reload forgets it.
    browser.open(&url, "#status", "it asks for the token");
    place.end();
}
