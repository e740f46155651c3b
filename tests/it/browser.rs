//! The pages, as a real browser shows them.

use std::fs;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::browser::FOREIGN_NAME;
use crate::support::nginx::Nginx;
use crate::support::nix::hash_part;
use crate::support::server::command;
use crate::support::{Browser, Connection, Narwire, Nix, Store, eventually, fixture, run, text};

/// A signed cache of the fixture.
fn serve() -> Narwire {
    fixture().store.serve_signed(&fixture().key)
}

/// What a click on the button of the one snippet below this heading has put into the clipboard: it is pasted into the field.
fn copied(browser: &Browser, heading: &str) -> String {
    let selector = format!("button[aria-label='Copy: {heading}']");
    browser.click(&selector);
    browser.eventually("document.getElementById('announcement').textContent === 'Copied'");
    browser.script("const area = document.createElement('textarea'); area.id = 'pasted'; document.body.append(area); area.focus()");
    browser.press(&["\u{e009}"], &["v"]);
    browser.eventually("document.getElementById('pasted').value !== ''");
    let text = browser.text_of("document.getElementById('pasted').value");
    browser.script("document.getElementById('pasted').remove()");
    text
}

#[test]
fn the_first_page_shows_keys_and_copies_snippets_with_the_url_in_the_address_bar() {
    let (browser, server) = (Browser::open(), serve());
    let key = &fixture().key.public;
    // Once as a browser sees this machine, once as it sees one of which it cannot be sure: each has a clipboard of its own.
    for url in [server.url(), format!("http://{FOREIGN_NAME}:{}", server.address().port())] {
        browser.go(&url);
        assert!(browser.text().contains(key), "{}", browser.text());
        let wanted = format!("extra-substituters = {url}\nextra-trusted-public-keys = {key}");
        assert_eq!(copied(&browser, "nix.conf"), wanted);
        assert!(copied(&browser, "For one build").contains(&format!("--extra-substituters '{url}'")));
        assert_eq!(browser.console(), [""; 0]);
    }
}

#[test]
fn behind_a_proxy_with_tls_snippets_have_the_url_of_the_proxy() {
    let (browser, server) = (Browser::open(), serve());
    let nginx = Nginx::start(server.address());
    browser.go(&nginx.tls_url());
    assert!(copied(&browser, "nix.conf").contains(&format!("extra-substituters = {}\n", nginx.tls_url())));
    assert_eq!(browser.console(), [""; 0]);
}

#[test]
fn without_scripts_the_page_says_all_but_the_figures() {
    let (browser, server) = (Browser::open(), serve());
    browser.chrome("Emulation.setScriptExecutionDisabled", &json!({ "value": true }));
    browser.go(&server.url());
    let text = browser.text();
    for words in [&server.url(), &fixture().key.public, "nixConfig", "nix.settings", "need JavaScript"] {
        assert!(text.contains(words), "{words} is not in {text}");
    }
    assert!(!text.contains("Throughput") && !text.contains("Copy\n"), "{text}");
}

/// What makes a page hard to use for some, measured on all that it shows.
const FAULTS: &str = r"
    const faults = [];
    const lightness = ([red, green, blue]) => {
        const linear = (part) => (part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        return 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
    };
    const parts = (color) => color.match(/[\d.]+/g).map(Number);
    const behind = (element) => {
        for (; element; element = element.parentElement) {
            const color = parts(getComputedStyle(element).backgroundColor);
            if (color.length < 4 || color[3] > 0) return color;
        }
        return [255, 255, 255];
    };
    for (const element of document.querySelectorAll('body *')) {
        const hasText = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!hasText || !element.checkVisibility() || element.closest('noscript, script, .unseen, .skip')) continue;
        const [one, other] = [parts(getComputedStyle(element).color), behind(element)].map(lightness);
        const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        if (contrast < 4.5) faults.push(`${element.outerHTML.slice(0, 80)} has a contrast of ${contrast}`);
    }
    for (const id of [...document.querySelectorAll('[id]')].map((element) => element.id)) {
        if (document.querySelectorAll(`[id='${id}']`).length > 1) faults.push(`two elements are called ${id}`);
    }
    let level = 0;
    for (const heading of document.querySelectorAll('h1, h2, h3, h4')) {
        if (!heading.checkVisibility()) continue;
        const next = Number(heading.tagName[1]);
        if (next > level + 1) faults.push(`${heading.textContent} is a heading of level ${next} behind one of ${level}`);
        level = next;
    }
    for (const cell of document.querySelectorAll('.size')) {
        const range = document.createRange();
        range.selectNodeContents(cell);
        const lines = new Set([...range.getClientRects()].map((line) => line.top));
        if (lines.size > 1) faults.push(`${cell.textContent} is broken into ${lines.size} lines`);
    }
    const {scrollWidth, clientWidth} = document.scrollingElement;
    if (scrollWidth > clientWidth) faults.push(`${scrollWidth} pixels are shown in ${clientWidth}`);
    if (document.querySelectorAll('main, h1').length !== 2) faults.push('not one main part and one heading');
    return faults;
";

/// Whatever the page at this URL is, everybody can read and use it: in the light and in the dark, on a phone, by ear.
fn expect_usable(browser: &Browser, url: &str) {
    let mut grounds = Vec::new();
    for (scheme, width) in [("light", 1280), ("dark", 1280), ("light", 360), ("dark", 320)] {
        browser.prefer(scheme);
        browser.resize(width, 800, width < 1000);
        browser.go(url);
        assert_eq!(browser.script(FAULTS), json!([]), "{url} in the {scheme}, {width} pixels wide");
        grounds.push(browser.text_of("getComputedStyle(document.body).backgroundColor"));
    }
    for control in browser.find("a, button, input, select, summary, [tabindex='0'], [role='img']") {
        assert_ne!(browser.name_of(&control), "", "a control of {url} has no name");
    }
    assert_ne!(grounds[0], grounds[1], "light and dark look alike");
    assert_eq!(browser.console(), [""; 0]);
}

#[test]
fn everybody_can_use_the_first_page() {
    let (browser, server) = (Browser::open(), serve());
    expect_usable(&browser, &server.url());
}

#[test]
fn all_of_the_first_page_is_reached_with_the_keyboard() {
    let (browser, server) = (Browser::open(), serve());
    browser.go(&server.url());
    let mut reached = Vec::new();
    let focused = "const {activeElement: it} = document;
        return it === document.body ? '' : it.getAttribute('aria-label') ?? it.labels?.[0]?.textContent ?? it.textContent";
    loop {
        browser.press(&[], &["\u{e004}"]);
        let name = browser.script(focused).as_str().unwrap().to_owned();
        if name.is_empty() || reached.contains(&name) {
            break;
        }
        let is_seen = "const style = getComputedStyle(document.activeElement);
            return style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2";
        assert_eq!(browser.script(is_seen), Value::Bool(true), "one does not see that {name} has the focus");
        reached.push(name);
    }
    for (position, wanted) in [
        "Skip to content",
        "narwire",
        "Search by store hash or name",
        "Search",
        "Use this cache",
        "About it",
        "Pause",
    ]
    .iter()
    .enumerate()
    {
        assert_eq!(reached.get(position).map(String::as_str), Some(*wanted), "{reached:?}");
    }
    for wanted in ["Copy: Public key", "Copy: nix.conf", "Copy: flake.nix", "Copy: For one build", "metrics"]
    {
        assert!(reached.iter().any(|name| name == wanted), "{wanted} is not among {reached:?}");
    }
    // The first link is there for who does not want to go through all that stands above.
    browser.go(&server.url());
    browser.press(&[], &["\u{e004}", "\u{e007}"]);
    browser.eventually("document.activeElement.id === 'main'");
}

/// Downloads until the server ends.
fn keep_busy(server: &Narwire) -> JoinHandle<()> {
    let (address, target) = (server.address(), server.nar_target(hash_part(fixture().path("large"))));
    let ask = move || Connection::try_open(address)?.try_request("GET", &target, &[]);
    thread::spawn(move || while ask().is_some() {})
}

#[test]
fn figures_move_while_something_is_downloaded_and_rest_while_they_are_paused() {
    let (browser, server) = (Browser::open(), serve());
    browser.go(&server.url());
    let downloads = keep_busy(&server);
    let series = |name: &str, part: &str| format!("document.querySelector('[data-series={name}] {part}')");
    let figure = |name: &str| format!("document.querySelector('[data-figure={name}]').textContent");
    browser.eventually(&format!("/[1-9].* [MG]B.s/.test({}.textContent)", series("throughput", "strong")));
    browser.eventually(&format!("/[1-9].* .s/.test({}.textContent)", series("requests", "strong")));
    browser.eventually(&format!("/[1-9].* (µs|ms|s)$/.test({})", figure("first-byte")));
    browser.eventually(&format!("Number({}) >= 1", figure("connections")));
    let line = format!("{}.getAttribute('d')", series("throughput", ".line"));
    let before = browser.text_of(&line);
    browser.eventually(&format!("{line} !== '{before}'"));
    let label = browser.text_of(&format!("{}.getAttribute('aria-label')", series("throughput", "svg")));
    assert!(label.starts_with("Throughput of the last 2 minutes: from "), "{label}");
    browser.click("#pause");
    assert_eq!(browser.text_of("document.getElementById('pause').getAttribute('aria-pressed')"), "true");
    assert_eq!(browser.console(), [""; 0]);
    drop(server);
    downloads.join().unwrap();
}

#[test]
fn who_looks_on_is_told_when_there_are_no_figures_any_more() {
    let (browser, mut server) = (Browser::open(), serve());
    browser.go(&server.url());
    browser.eventually("document.getElementById('live').checkVisibility()");
    server.signal(Signal::TERM);
    server.exit();
    browser.eventually("document.getElementById('trouble').textContent.includes('could not be read')");
}

#[test]
fn figures_that_a_proxy_keeps_back_are_not_shown() {
    let (browser, server) = (Browser::open(), serve());
    browser.go(&server.url());
    browser.eventually("document.getElementById('live').checkVisibility()");
    browser.script("window.fetch = async () => new Response('', { status: 404 })");
    browser.eventually("!document.getElementById('live').checkVisibility()");
    // Nothing leads to where they would be either.
    let links =
        "[...document.querySelectorAll('a[href=\"/metrics\"]')].filter((link) => link.checkVisibility())";
    assert_eq!(browser.script(&format!("return {links}.length")), json!(0));
}

/// What the page is given for figures, ask by ask, and `shown`: what it had made of those before. Hours go by before the third.
const FIGURES: &str = r#"
    const now = performance.now.bind(performance);
    let passed = 0;
    performance.now = () => now() + passed;
    window.shown = [];
    window.fetch = async () => {
        const words = (name) => document.querySelector(`[data-figure=${name}]`).parentElement.textContent;
        shown.push([words('first-byte'), words('answers')]);
        const asked = Math.min(shown.length, 3);
        if (asked === 3) passed = 1e7;
        const bucket = 'narwire_http_first_byte_seconds_bucket';
        return new Response(`process_start_time_seconds 1
narwire_http_requests_total{route="nar",status="200"} ${100 * asked}
narwire_answer_cache_hits_total ${100 * asked}
narwire_answer_cache_misses_total 0
${bucket}{le="0.001",route="nar"} ${100 * asked}
${bucket}{le="+Inf",route="nar"} ${100 * asked}
${bucket}{le="0.001",route="metrics"} 0
${bucket}{le="+Inf",route="metrics"} ${100 * asked}
${bucket}{le="0.001",route="upload"} 0
${bucket}{le="+Inf",route="upload"} ${100 * asked}
`);
    };
"#;

#[test]
fn figures_tell_of_downloads_and_of_the_time_they_name() {
    let (browser, server) = (Browser::open(), serve());
    browser.go(&server.url());
    browser.script(FIGURES);
    browser.eventually("shown.length >= 4");
    let shown = browser.script("return shown");
    // Uploads take as long as their clients, and this page is no download.
    let first_byte = |ask: usize| shown[ask][0].as_str().unwrap();
    assert!(first_byte(1).contains("990 µs"), "{shown}");
    // Two asks of the last two minutes, and then one that has none before it.
    let answers = |ask: usize| shown[ask][1].as_str().unwrap();
    assert!(answers(2).contains("last 2 minutes"), "{shown}");
    assert!(answers(3).contains("since the start"), "{shown}");
    assert_eq!(browser.console(), [""; 0]);
}

#[test]
fn a_private_cache_that_takes_uploads_says_how_a_token_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    let token = run(command()
        .args(["token", "create", "--name", "reader", "--scope", "read", "--file"])
        .arg(&tokens));
    let secret = token.lines().last().unwrap();
    let cache = folder.path().join("cache");
    fs::create_dir(&cache).unwrap();
    let server = Narwire::start(["--private", "--upload-token-file", text(&tokens), text(&cache)]);
    let browser = Browser::open();
    browser.go(&format!("http://reader:{secret}@{}/", server.address()));
    assert_eq!(copied(&browser, "/etc/nix/netrc"), "machine 127.0.0.1 login narwire password TOKEN");
    assert_eq!(
        copied(&browser, "With Nix"),
        format!("nix copy --to '{}?compression=zstd' ./result", server.url())
    );
    let seen = browser.text();
    assert!(seen.contains("This cache is private") && !seen.contains("Priority"), "{seen}");
    // The browser sends the token along when it asks for the figures.
    browser.eventually("document.getElementById('live').checkVisibility()");
    assert_eq!(browser.console(), [""; 0]);
}

#[test]
fn a_search_leads_to_a_path_its_references_and_its_log() {
    let (browser, server) = (Browser::open(), serve());
    let [program, library] = ["program-1.0", "library-1.0"].map(|name| fixture().path(name));
    let base_name = |path: &str| path.rsplit('/').next().unwrap().to_owned();
    browser.go(&server.url());
    browser.write("header input", "program-1\u{e007}");
    browser.eventually("document.querySelector('h1').textContent === 'Search'");
    expect_usable(&browser, &browser.url());
    browser.follow(&base_name(program));
    browser.eventually("document.querySelector('h1').textContent === 'program-1.0'");
    expect_usable(&browser, &browser.url());
    let trust = format!("--extra-trusted-public-keys '{}'", fixture().key.public);
    assert_eq!(copied(&browser, "Get it"), format!("nix copy --from '{}' {trust} '{program}'", server.url()));
    browser.follow(&base_name(library));
    browser.eventually("document.querySelector('h1').textContent === 'library-1.0'");
    // What refers to it is there as well.
    assert!(browser.text().contains(&base_name(program)), "{}", browser.text());
    assert_eq!(browser.console(), [""; 0]);
    browser.follow("Build log");
    browser.eventually("document.body.textContent.includes('the builder speaks')");

    // A hash, or a whole path, is the path at once.
    for words in [hash_part(program), program] {
        browser.go(&server.url());
        browser.write("header input", &format!("{words}\u{e007}"));
        browser.eventually("document.querySelector('h1').textContent === 'program-1.0'");
    }
    browser.go(&format!("{}/search?q=%3Cimg+src%3Dx+onerror%3Dalert(1)%3E", server.url()));
    assert!(browser.text().contains("<img src=x onerror=alert(1)>"), "{}", browser.text());
    assert_eq!(browser.find("img"), [""; 0]);
    // The log is a text and has no icon, so the browser has asked for one.
    let console = browser.console();
    assert!(console.iter().all(|line| line.contains("/favicon.ico")), "{console:?}");
}

#[test]
fn what_is_in_a_path_is_shown_and_hostile_names_and_files_stay_what_they_are() {
    const HOSTILE: &str = "<img src=x onerror=alert(1)>";
    const PAGE: &str = "<title>quiet</title><script>document.title = 'ran'</script><p>shown</p>";
    let source = tempfile::tempdir().unwrap();
    let folder = source.path().join("hostile");
    fs::create_dir_all(folder.join(HOSTILE)).unwrap();
    let name = "'\" onfocus=alert(2) autofocus x='";
    fs::write(folder.join(HOSTILE).join(name), "a text").unwrap();
    fs::write(folder.join(HOSTILE).join("page.html"), PAGE).unwrap();
    let store = Store::new(Nix::installed());
    let path = store.add(&folder);
    let (browser, server) = (Browser::open(), store.serve());
    browser.go(&format!("{}/path/{}", server.url(), hash_part(&path)));
    browser.follow("Contents");
    browser.eventually("document.querySelector('table') !== null");
    expect_usable(&browser, &browser.url());
    browser.follow(&format!("{HOSTILE}/"));
    browser.eventually("document.querySelectorAll('tbody tr').length === 2");
    expect_usable(&browser, &browser.url());
    assert_eq!(browser.find("main :is(img, script, [onfocus], [onerror])"), [""; 0]);
    let listing = browser.url();
    browser.follow(name);
    browser.eventually("document.body.textContent === 'a text'");
    browser.console();
    // A page that somebody has built is shown, and its script does not run: it would be ours to the browser.
    browser.go(&listing);
    browser.follow("page.html");
    eventually("the page is shown", || browser.title() == "quiet");
    let blocked = browser.console();
    assert!(blocked.iter().any(|line| line.contains("sandboxed")), "{blocked:?}");
}

#[test]
fn where_nobody_is_to_look_around_there_is_no_search() {
    let server = Narwire::start([fixture().store.flags(), vec!["--no-browse".to_owned()]].concat());
    let browser = Browser::open();
    expect_usable(&browser, &server.url());
    assert_eq!(browser.find("form, input"), [""; 0]);
}

/// Longest picture of the README. Bytes.
const PICTURE_LEN_MAX: usize = 150_000;

/// Where pictures are kept, if anybody wants them.
fn gallery() -> Option<PathBuf> {
    std::env::var_os("NARWIRE_TEST_SCREENSHOTS").map(PathBuf::from)
}

/// What the window shows, as a picture.
fn picture(browser: &Browser, name: &str) {
    let png = browser.screenshot();
    assert!(png.starts_with(b"\x89PNG") && png.len() <= PICTURE_LEN_MAX, "{name}: {} bytes", png.len());
    if let Some(folder) = gallery() {
        // The tests are run in the folder of the package.
        fs::write(folder.join(name), png).unwrap();
    }
}

#[test]
fn pictures_of_the_pages_are_short_enough_for_the_readme() {
    let (browser, server) = (Browser::open(), serve());
    let downloads = keep_busy(&server);
    let url = format!("http://{FOREIGN_NAME}:{}", server.address().port());
    browser.prefer("light");
    browser.resize(1280, 900, false);
    browser.go(&url);
    // A chart that is looked at should have a past.
    let turns = if gallery().is_some() { 25 } else { 1 };
    let line = "document.querySelector('[data-series=throughput] .line').getAttribute('d')";
    browser.eventually(&format!("({line} ?? '').split('L').length >= {turns}"));
    picture(&browser, "index.png");
    browser.prefer("dark");
    picture(&browser, "index-dark.png");
    browser.resize(390, 844, true);
    picture(&browser, "index-phone.png");
    browser.prefer("light");
    browser.resize(1280, 900, false);
    for (target, name) in [("/search?q=pro", "search.png"), ("/path/", "path.png")] {
        let hash_part = if target == "/path/" { hash_part(fixture().path("program-1.0")) } else { "" };
        browser.go(&format!("{url}{target}{hash_part}"));
        picture(&browser, name);
    }
    drop(server);
    downloads.join().unwrap();
}
