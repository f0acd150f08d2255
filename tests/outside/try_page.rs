//! The try-it page of the admin endpoint in a real browser: it is driven as a person would, by the
//! browser's own protocol (<https://chromedevtools.github.io/devtools-protocol/>).

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tungstenite::stream::MaybeTlsStream;
use tungstenite::{Message, WebSocket};

use crate::browser::{chromium, headless};
use crate::support::{Checkout, PATIENCE, Running, available, eventually, free_port};

/// A browser with its tabs, and what their pages complained of.
struct Browser {
    socket: WebSocket<MaybeTlsStream<TcpStream>>,
    /// The tab that is looked at.
    page: String,
    id: u64,
    complaints: Vec<Value>,
    _process: Running,
    _profile: TempDir,
}

impl Browser {
    /// Starts the browser, with an empty tab.
    fn start(checkout: &Checkout, program: &Path) -> Self {
        let profile = tempfile::tempdir().expect("a directory");
        let port = free_port();
        let page = format!("--remote-debugging-port={port} --hide-scrollbars about:blank");
        let line = headless(program, profile.path(), &page);
        let process = Running::start(&mut checkout.shell(&line), "");
        let mut url = None;
        eventually("the browser says where it listens", || {
            let said = process.errors();
            let lines = said.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            let at =
                |line: &str| line.trim().strip_prefix("DevTools listening on ").map(str::to_owned);
            url = lines.into_iter().find_map(at);
            url.is_some()
        });
        let (socket, _) = tungstenite::connect(url.expect("checked")).expect("it listens");
        let MaybeTlsStream::Plain(stream) = socket.get_ref() else { panic!("plain TCP") };
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let mut browser = Self {
            socket,
            page: String::new(),
            id: 0,
            complaints: Vec::new(),
            _process: process,
            _profile: profile,
        };
        browser.new_tab();
        browser
    }

    /// Opens an empty tab, and looks at it. Returns the one that was looked at.
    fn new_tab(&mut self) -> String {
        let before = std::mem::take(&mut self.page);
        let target = self.ask("Target.createTarget", &json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let page = self.ask("Target.attachToTarget", &attach)["sessionId"].clone();
        self.page = page.as_str().expect("a session").to_owned();
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            self.ask(domain, &json!({}));
        }
        before
    }

    /// Looks at the other one of two tabs.
    fn turn_to(&mut self, other: &mut String) {
        std::mem::swap(&mut self.page, other);
    }

    /// Sends a command, and waits for its result.
    fn ask(&mut self, method: &str, params: &Value) -> Value {
        self.id += 1;
        let mut command = json!({ "id": self.id, "method": method, "params": params });
        if !self.page.is_empty() {
            command["sessionId"] = self.page.as_str().into();
        }
        self.socket.send(Message::text(command.to_string())).expect("the browser reads");
        loop {
            let message = self.socket.read().expect("the browser answers in time");
            let Message::Text(text) = message else { continue };
            let said: Value = serde_json::from_str(&text).expect("JSON");
            if said["id"] == self.id {
                assert!(said["error"].is_null(), "{method} {params}: {said}");
                return said["result"].clone();
            }
            let is_complaint = match said["method"].as_str() {
                Some("Runtime.exceptionThrown") => true,
                Some("Log.entryAdded") => said["params"]["entry"]["level"] == "error",
                Some(_) | None => false,
            };
            if is_complaint {
                self.complaints.push(said["params"].clone());
            }
        }
    }

    /// Value of an expression in the page.
    fn value(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true });
        let told = self.ask("Runtime.evaluate", &params);
        assert!(told["exceptionDetails"].is_null(), "{expression}: {told}");
        told["result"]["value"].clone()
    }

    /// Text of the element, as it is shown.
    fn text(&mut self, selector: &str) -> String {
        let told = self.value(&format!("document.querySelector({selector:?})?.innerText ?? ''"));
        told.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the text of the element holds `part`.
    fn wait_for(&mut self, selector: &str, part: &str) {
        let mut last = String::new();
        let what = format!("{selector} says {part:?}");
        let log = |browser: &mut Self| browser.text("#log");
        let until = std::time::Instant::now() + PATIENCE;
        while !last.contains(part) {
            let late = std::time::Instant::now() > until;
            assert!(!late, "never: {what}, but {last:?}; the log: {}", log(self));
            last = self.text(selector);
        }
    }

    /// Opens `url`, and waits for its script.
    fn open(&mut self, url: &str) {
        self.ask("Page.navigate", &json!({ "url": url }));
        self.wait_for("#url-hint", "listens");
    }

    /// Clicks the middle of the element.
    fn click(&mut self, selector: &str) {
        let place = format!(
            "(() => {{ const e = document.querySelector({selector:?}); \
             if (e.ariaDisabled === 'true') return null; e.scrollIntoView({{ block: 'center' }}); \
             const r = e.getBoundingClientRect(); \
             return [r.x + r.width / 2, r.y + r.height / 2]; }})()"
        );
        let at = self.value(&place);
        assert!(at.is_array(), "{selector} cannot be clicked");
        for kind in ["mousePressed", "mouseReleased"] {
            let (x, y) = (&at[0], &at[1]);
            let event = json!({ "type": kind, "x": x, "y": y, "button": "left", "clickCount": 1 });
            self.ask("Input.dispatchMouseEvent", &event);
        }
    }

    /// Writes `text` into the field, in place of its contents.
    fn fill(&mut self, selector: &str, text: &str) {
        let whole = format!(
            "(() => {{ const e = document.querySelector({selector:?}); e.focus(); e.select(); }})()"
        );
        self.value(&whole);
        self.ask("Input.insertText", &json!({ "text": text }));
    }

    /// Presses Enter in the field that has the focus.
    fn press_enter(&mut self) {
        for kind in ["keyDown", "keyUp"] {
            let code = json!({ "type": kind, "key": "Enter", "code": "Enter", "text": "\r",
                               "windowsVirtualKeyCode": 13 });
            self.ask("Input.dispatchKeyEvent", &code);
        }
    }

    /// Shows the page on a screen of that width, light or dark.
    fn show(&mut self, width: u32, scheme: &str) {
        let height = if width < 600 { 780 } else { 900 };
        let screen = json!({
            "width": width,
            "height": height,
            "deviceScaleFactor": 1,
            "mobile": width < 600,
        });
        self.ask("Emulation.setDeviceMetricsOverride", &screen);
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.ask("Emulation.setEmulatedMedia", &json!({ "features": features }));
    }

    /// Saves a picture of the whole page beside the built tests.
    fn picture(&mut self, name: &str) {
        let whole = json!({ "captureBeyondViewport": true });
        let told = self.ask("Page.captureScreenshot", &whole);
        let data = told["data"].as_str().expect("a picture");
        let bytes = base64::engine::general_purpose::STANDARD.decode(data).expect("base64");
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.png"));
        fs::write(path, bytes).expect("the directory is ours");
    }

    /// Whether the page is as wide as the screen, so that nothing is scrolled sideways.
    fn fits(&mut self) -> bool {
        self.value("document.documentElement.scrollWidth <= window.innerWidth") == true
    }
}

/// The browser, if there is one here.
fn found(test: &str) -> Option<PathBuf> {
    let program = chromium();
    available(test, "chromium", program.is_some());
    program
}

#[test]
fn a_person_connects_sends_cuts_the_line_and_sees_the_session_come_back() {
    let test = "a_person_connects_sends_cuts_the_line_and_sees_the_session_come_back";
    let Some(program) = found(test) else { return };
    let checkout = Checkout::new();
    let gateway = checkout.gateway(&[], &["logic"]);
    let mut browser = Browser::start(&checkout, &program);
    browser.show(1280, "light");
    browser.open(&format!("http://{}/", checkout.address("8000")));
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
    let mut browser = Browser::start(&checkout, &program);
    let url = format!("http://{}/", checkout.address("8000"));
    browser.open(&url);
    // Joining connects by itself.
    browser.click("#enter");
    browser.wait_for("#group-position", "room:lobby");
    let first = &mut browser.new_tab();
    browser.open(&url);
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
    let mut browser = Browser::start(&checkout, &program);
    browser.show(360, "light");
    browser.open(&format!("http://localhost:{}/", checkout.address("8000").port()));
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
