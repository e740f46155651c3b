//! A real browser: Debian's Chromium, spoken to through chromedriver (W3C WebDriver, and Chrome's own protocol where that has no word).
//!
//! One of both serves all tests, one test at a time: to start a browser takes longer than most tests. A shell holds them, and ends
//! them when this process does, however it does.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::{Connection, eventually};

/// What WebDriver calls the reference to an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Ends chromedriver and all that it has started, which is one process group, when its own standard input ends: whoever holds the
/// other end of that may be killed. Then it removes what they have written.
const HOLD: &str = r#"
    folder=$(mktemp -d) || exit 1
    echo "folder $folder"
    TMPDIR=$folder chromedriver --port=0 --log-level=WARNING </dev/null &
    cat >/dev/null
    trap '' TERM
    kill -TERM 0
    wait
    for attempt in 1 2 3 4 5 6 7 8 9; do
        rm -rf "$folder" && break
        sleep 0.2
    done 2>/dev/null
    kill -KILL 0
"#;

/// A name that leads to this machine, in the browser alone. What comes from there is not secure to a browser, as nothing is that comes
/// from another machine without TLS.
pub const FOREIGN_NAME: &str = "cache.test";

/// The browser, for one test. Dropping it leaves it to the next.
pub struct Browser(MutexGuard<'static, Option<Driver>>);

struct Driver {
    address: SocketAddr,
    session: String,
    /// Its standard input is open as long as this process is there.
    _shell: Child,
}

impl Browser {
    /// The browser as it is when it has just been started. Waits until other tests are done with it.
    pub fn open() -> Self {
        static DRIVER: Mutex<Option<Driver>> = Mutex::new(None);
        // A test that has failed leaves nothing behind that is not reset here.
        let mut guard = DRIVER.lock().unwrap_or_else(PoisonError::into_inner);
        guard.get_or_insert_with(Driver::start);
        let browser = Self(guard);
        browser.chrome("Emulation.setScriptExecutionDisabled", &json!({ "value": false }));
        browser.chrome("Emulation.setEmulatedMedia", &json!({ "features": [] }));
        browser.chrome("Emulation.clearDeviceMetricsOverride", &json!({}));
        browser.go("about:blank");
        browser.console();
        browser
    }

    /// Loads a page.
    pub fn go(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    /// Where it is.
    pub fn url(&self) -> String {
        self.value("GET", "/url", None).as_str().unwrap().to_owned()
    }

    /// Runs the body of a function in the page, and gives what it returns.
    pub fn script(&self, body: &str) -> Value {
        self.post("/execute/sync", &json!({ "script": body, "args": [] }))
    }

    /// The same where that is a text.
    #[track_caller]
    pub fn text_of(&self, expression: &str) -> String {
        let value = self.script(&format!("return {expression}"));
        value.as_str().unwrap_or_else(|| panic!("{expression} is {value}")).to_owned()
    }

    /// Waits until an expression is true in the page.
    #[track_caller]
    pub fn eventually(&self, expression: &str) {
        eventually(expression, || self.script(&format!("return Boolean({expression})")) == Value::Bool(true));
    }

    /// The text that people see.
    pub fn text(&self) -> String {
        let body = &self.find("body")[0];
        self.value("GET", &format!("/element/{body}/text"), None).as_str().unwrap().to_owned()
    }

    /// What the page has that fits a CSS selector.
    pub fn find(&self, selector: &str) -> Vec<String> {
        let found = self.post("/elements", &json!({ "using": "css selector", "value": selector }));
        let elements = found.as_array().unwrap().iter();
        elements.map(|element| element[ELEMENT].as_str().unwrap().to_owned()).collect()
    }

    /// Clicks on the one element that fits.
    #[track_caller]
    pub fn click(&self, selector: &str) {
        self.post(&format!("/element/{}/click", self.find_one(selector)), &json!({}));
    }

    /// Types into the one element that fits.
    #[track_caller]
    pub fn write(&self, selector: &str, text: &str) {
        self.post(&format!("/element/{}/value", self.find_one(selector)), &json!({ "text": text }));
    }

    /// Clicks on the one link with this text, and is where it leads.
    #[track_caller]
    pub fn follow(&self, text: &str) {
        let found = self.post("/elements", &json!({ "using": "link text", "value": text }));
        let links = found.as_array().unwrap();
        assert_eq!(links.len(), 1, "links to {text} on {}:\n{}", self.url(), self.text());
        let link = links[0][ELEMENT].as_str().unwrap();
        self.post(&format!("/element/{link}/click"), &json!({}));
    }

    #[track_caller]
    fn find_one(&self, selector: &str) -> String {
        let found = self.find(selector);
        assert_eq!(found.len(), 1, "{selector} on {}:\n{}", self.url(), self.text());
        found.into_iter().next().unwrap()
    }

    /// What a screen reader calls an element.
    pub fn name_of(&self, element: &str) -> String {
        self.value("GET", &format!("/element/{element}/computedlabel"), None).as_str().unwrap().to_owned()
    }

    /// Presses keys one after the other, with those of `held` held down.
    pub fn press(&self, held: &[&str], keys: &[&str]) {
        let key = |kind: &str, key: &&str| json!({ "type": kind, "value": key });
        let mut actions: Vec<_> = held.iter().map(|name| key("keyDown", name)).collect();
        actions.extend(keys.iter().flat_map(|name| [key("keyDown", name), key("keyUp", name)]));
        actions.extend(held.iter().map(|name| key("keyUp", name)));
        self.post(
            "/actions",
            &json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": actions }] }),
        );
    }

    /// Errors and warnings that the console has got since it was last asked.
    pub fn console(&self) -> Vec<String> {
        let entries = self.post("/se/log", &json!({ "type": "browser" }));
        let messages = entries.as_array().unwrap().iter();
        messages.map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }

    /// The title of the document, which may be one that runs no script.
    pub fn title(&self) -> String {
        let history = self.chrome("Page.getNavigationHistory", &json!({}));
        let index = usize::try_from(history["currentIndex"].as_u64().unwrap()).unwrap();
        history["entries"][index]["title"].as_str().unwrap().to_owned()
    }

    /// A command of Chrome's own protocol.
    pub fn chrome(&self, command: &str, parameters: &Value) -> Value {
        self.post("/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    /// What the page is told that its reader prefers: `light` or `dark`.
    pub fn prefer(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.chrome("Emulation.setEmulatedMedia", &json!({ "features": features }));
    }

    /// A window of this size; pixels of CSS.
    pub fn resize(&self, width: u32, height: u32, is_phone: bool) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone });
        self.chrome("Emulation.setDeviceMetricsOverride", &metrics);
    }

    /// The window as a PNG.
    pub fn screenshot(&self) -> Vec<u8> {
        BASE64_STANDARD.decode(self.value("GET", "/screenshot", None).as_str().unwrap()).unwrap()
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        self.value("POST", path, Some(body))
    }

    fn value(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let driver = self.0.as_ref().unwrap();
        driver.ask(method, &format!("/session/{}{path}", driver.session), body)
    }
}

impl Driver {
    fn start() -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", HOLD]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = shell.process_group(0).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut behind = |words: &str| {
            let found = lines.find_map(|line| Some(line.split_once(words)?.1.to_owned()));
            found.unwrap_or_else(|| panic!("no chromedriver: tests/run installs it"))
        };
        let folder = behind("folder ");
        let port = behind("started successfully on port ").trim_end_matches('.').parse().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut driver = Self { address, session: String::new(), _shell: child };
        let map = format!("--host-resolver-rules=MAP {FOREIGN_NAME} 127.0.0.1");
        let profile = format!("--user-data-dir={folder}/profile");
        let arguments = [
            "--headless=new",
            // Root may not have its sandbox, and the pages here are ours.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--no-first-run",
            "--disable-breakpad",
            "--hide-scrollbars",
            "--window-size=1280,900",
            &map,
            &profile,
        ];
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "acceptInsecureCerts": true,
            "goog:loggingPrefs": { "browser": "WARNING" },
            "goog:chromeOptions": { "binary": "/usr/bin/chromium", "args": arguments },
        } } });
        let session = driver.ask("POST", "/session", Some(&capabilities));
        session["sessionId"].as_str().unwrap().clone_into(&mut driver.session);
        driver
    }

    #[track_caller]
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let body = body.map(ToString::to_string).unwrap_or_default();
        let mut connection = Connection::open(self.address);
        let (host, len) = (self.address, body.len());
        connection.send(format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n{body}"
        ));
        let reply = connection.reply_to(method);
        let answer: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(reply.status, 200, "{path} {body}: {}", answer["value"]["message"]);
        answer["value"].clone()
    }
}
