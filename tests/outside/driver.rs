//! A real browser that is driven as a person would, by the browser's own protocol
//! (<https://chromedevtools.github.io/devtools-protocol/>).

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use base64::Engine as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tungstenite::stream::MaybeTlsStream;
use tungstenite::{Message, WebSocket};

use crate::browser::headless;
use crate::support::{PATIENCE, Running, eventually, free_port, shell};

/// A browser with its tabs, and what their pages complained of.
pub struct Browser {
    socket: WebSocket<MaybeTlsStream<TcpStream>>,
    /// The tab that is looked at.
    page: String,
    id: u64,
    /// What pages complained of.
    pub complaints: Vec<Value>,
    _process: Running,
    _profile: TempDir,
}

impl Browser {
    /// Starts the browser, with an empty tab.
    pub fn start(program: &Path) -> Self {
        let profile = tempfile::tempdir().expect("a directory");
        let port = free_port();
        let page = format!("--remote-debugging-port={port} --hide-scrollbars about:blank");
        let line = headless(program, profile.path(), &page);
        let process = Running::start(&mut shell(&line, profile.path(), profile.path()), "");
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
    pub fn new_tab(&mut self) -> String {
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
    pub fn turn_to(&mut self, other: &mut String) {
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
    pub fn value(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true });
        let told = self.ask("Runtime.evaluate", &params);
        assert!(told["exceptionDetails"].is_null(), "{expression}: {told}");
        told["result"]["value"].clone()
    }

    /// Text of the element, as it is shown.
    pub fn text(&mut self, selector: &str) -> String {
        let told = self.value(&format!("document.querySelector({selector:?})?.innerText ?? ''"));
        told.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the text of the element holds `part`.
    pub fn wait_for(&mut self, selector: &str, part: &str) {
        let mut last = String::new();
        let what = format!("{selector} says {part:?}");
        let log = |browser: &mut Self| browser.text("#log, #lines");
        let until = Instant::now() + PATIENCE;
        while !last.contains(part) {
            let late = Instant::now() > until;
            assert!(!late, "never: {what}, but {last:?}; the log: {}", log(self));
            last = self.text(selector);
        }
    }

    /// Opens `url`, and waits until its element says that its script has run.
    pub fn open(&mut self, url: &str, selector: &str, part: &str) {
        self.ask("Page.navigate", &json!({ "url": url }));
        self.wait_for(selector, part);
    }

    /// Clicks the middle of the element.
    pub fn click(&mut self, selector: &str) {
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
    pub fn fill(&mut self, selector: &str, text: &str) {
        let whole = format!(
            "(() => {{ const e = document.querySelector({selector:?}); e.focus(); e.select(); }})()"
        );
        self.value(&whole);
        self.type_text(text);
    }

    /// Presses Enter in the field that has the focus.
    pub fn press_enter(&mut self) {
        self.press("Enter");
    }

    /// Presses a key: Enter, Tab, Escape, ArrowLeft, ArrowRight, Home or End.
    pub fn press(&mut self, key: &str) {
        let (text, number) = match key {
            "Enter" => ("\r", 13),
            "Tab" => ("", 9),
            "Escape" => ("", 27),
            "End" => ("", 35),
            "Home" => ("", 36),
            "ArrowLeft" => ("", 37),
            "ArrowRight" => ("", 39),
            other => panic!("no key {other:?} yet"),
        };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({ "type": kind, "key": key, "code": key,
                                    "windowsVirtualKeyCode": number });
            if !text.is_empty() {
                event["text"] = text.into();
            }
            self.ask("Input.dispatchKeyEvent", &event);
        }
    }

    /// Goes by the key Tab until the element has the focus.
    pub fn tab_to(&mut self, selector: &str) {
        let has_focus = format!("document.activeElement.matches({selector:?})");
        for _ in 0..200 {
            if self.value(&has_focus) == true {
                return;
            }
            self.press("Tab");
        }
        panic!("the key Tab never leads to {selector}");
    }

    /// Types into the field that has the focus.
    pub fn type_text(&mut self, text: &str) {
        self.ask("Input.insertText", &json!({ "text": text }));
    }

    /// Lets pages of servers come with certificates that nobody vouches for.
    pub fn take_any_certificate(&mut self) {
        self.ask("Security.setIgnoreCertificateErrors", &json!({ "ignore": true }));
    }

    /// Shows the page on a screen of that width, light or dark.
    pub fn show(&mut self, width: u32, scheme: &str) {
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
    pub fn picture(&mut self, name: &str) {
        let whole = json!({ "captureBeyondViewport": true });
        let told = self.ask("Page.captureScreenshot", &whole);
        let data = told["data"].as_str().expect("a picture");
        let bytes = base64::engine::general_purpose::STANDARD.decode(data).expect("base64");
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.png"));
        fs::write(path, bytes).expect("the directory is ours");
    }

    /// Whether the page is as wide as the screen, so that nothing is scrolled sideways.
    pub fn fits(&mut self) -> bool {
        self.value("document.documentElement.scrollWidth <= window.innerWidth") == true
    }
}
