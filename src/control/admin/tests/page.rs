//! The page at `/`, its files and the client library: who gets which, and what browsers are told.

use super::access::{TlsEndpoint, whole};
use super::*;
use crate::control::admin::page;

/// Head (in lower case, but for the body) and body of the answer to a GET with these headers.
async fn get(rig: &Rig, path: &str, headers: &str) -> (String, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", rig.admin);
    let answer = whole(rig, &request).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

#[tokio::test]
async fn who_accepts_html_gets_the_page_and_everybody_else_the_list() {
    let rig = rig(&[Fake::Good]);
    // Of Chromium, Firefox, a text browser; then of curl, fetch() and Prometheus.
    let browsers = [
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8",
        "text/html, application/xhtml+xml, */*;q=0.5",
        "application/json, Text/HTML;level=1;q=0.1",
    ];
    let others = [
        "*/*",
        "",
        "text/*",
        "application/json",
        "text/html;q=0",
        "text/html; Q=0.000, text/plain",
        "application/xhtml+xml",
        "x-text/html",
        "text/html-sandboxed",
    ];
    let cases = browsers.map(|accept| (accept, true)).into_iter();
    for (accept, is_page) in cases.chain(others.map(|accept| (accept, false))) {
        let (head, body) = get(&rig, "/", &format!("Accept: {accept}\r\n")).await;
        assert!(head.starts_with("http/1.1 200") && head.contains("vary: accept"), "{head}");
        assert_eq!(head.contains("content-type: text/html"), is_page, "{accept}: {head}");
        assert_eq!(body.starts_with("<!doctype html>"), is_page, "{accept}");
        assert_eq!(body.contains("GET  /health"), !is_page, "{accept}");
    }
    let two = "Accept: application/json\r\nAccept: text/html\r\n";
    assert!(get(&rig, "/", two).await.1.starts_with("<!doctype html>"), "lines are one list");
    assert!(get(&rig, "/", "").await.1.contains("GET  /health"), "no Accept is no browser");
}

#[tokio::test]
async fn the_page_may_load_its_own_files_and_connect_and_nothing_else() {
    let rig = rig(&[Fake::Good]);
    let (head, _) = get(&rig, "/", "Accept: text/html\r\n").await;
    for line in [
        "content-security-policy: default-src 'self'; connect-src 'self' ws: wss:; frame-ancestors \
         'none'; base-uri 'none'; form-action 'none'",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
        "cache-control: no-store",
    ] {
        assert!(head.lines().any(|found| found == line), "{line} in {head}");
    }
    for (path, media, text) in [
        ("/page.js", "text/javascript; charset=utf-8", page::SCRIPT),
        ("/page.css", "text/css; charset=utf-8", page::STYLE),
        ("/icon.svg", "image/svg+xml", page::ICON),
        ("/client.js", "text/javascript; charset=utf-8", &page::LIBRARY),
        ("/client.d.ts", "text/plain; charset=utf-8", page::TYPES),
    ] {
        let (head, body) = get(&rig, path, "Sec-Fetch-Site: same-origin\r\n").await;
        assert!(head.contains(&format!("content-type: {media}\r\n")), "{path}: {head}");
        assert!(head.contains("x-content-type-options: nosniff"), "{path}: {head}");
        assert_eq!(body, text, "{path}");
    }
}

/// The policy forbids them anyway: without this test the page would be broken in silence.
#[test]
fn the_page_has_no_script_style_or_address_of_elsewhere_within() {
    let html = include_str!("../../page/index.html");
    let script = page::SCRIPT;
    for forbidden in
        ["<style", "style=", " onclick", " onload", "javascript:", "http://", "https://"]
    {
        assert!(!html.contains(forbidden), "{forbidden}");
    }
    assert_eq!(html.matches("<script").count(), 1);
    assert!(html.contains("<script type=\"module\" src=\"/page.js\"></script>"));
    for forbidden in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
        assert!(!script.contains(forbidden), "{forbidden}: what comes from the network is text");
    }
    for forbidden in ["localStorage", "sessionStorage", "indexedDB", "document.cookie"] {
        assert!(!script.contains(forbidden), "{forbidden}: the token is kept nowhere");
    }
    let files = ["/page.css", "/page.js", "/icon.svg", "/client.js", "/client.d.ts"];
    let links = ["/guide", "/health", "/stats", "/routing/explain"];
    for path in files.iter().chain(&links) {
        let ends = ['"', '?'].map(|end| format!("=\"{path}{end}"));
        assert!(ends.iter().any(|link| html.contains(link)), "{path}");
        assert!(ROUTES.iter().any(|route| route.path == *path), "{path}");
    }
}

#[tokio::test]
async fn the_dashboard_is_served_under_the_same_policy_and_loads_its_own_files() {
    let rig = rig(&[Fake::Good]);
    let policy = |head: &str| {
        let line = head.lines().find(|line| line.starts_with("content-security-policy: "));
        line.expect("a policy").to_owned()
    };
    let (of_page, _) = get(&rig, "/", "Accept: text/html\r\n").await;
    let (head, html) = get(&rig, "/ui", "").await;
    assert_eq!(policy(&head), policy(&of_page));
    assert!(head.contains("referrer-policy: no-referrer"), "{head}");
    let scripts = [page::DASHBOARD_SCRIPT, page::CHARTS, page::ACTIONS];
    for (path, media, text) in [
        ("/ui.js", "text/javascript; charset=utf-8", scripts[0]),
        ("/ui-charts.js", "text/javascript; charset=utf-8", scripts[1]),
        ("/ui-actions.js", "text/javascript; charset=utf-8", scripts[2]),
        ("/ui.css", "text/css; charset=utf-8", page::DASHBOARD_STYLE),
    ] {
        let (head, body) = get(&rig, path, "Sec-Fetch-Site: same-origin\r\n").await;
        assert!(head.contains(&format!("content-type: {media}\r\n")), "{path}: {head}");
        assert_eq!(body, text, "{path}");
        assert!(html.contains(path) || scripts[0].contains(path), "{path}");
    }
    for forbidden in ["<style", "style=", " onclick", " onload", "javascript:", "http"] {
        assert!(!html.contains(forbidden), "{forbidden}");
    }
    let kept = ["localStorage", "sessionStorage", "indexedDB", "document.cookie"];
    let texts = ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("];
    for forbidden in kept.iter().chain(&texts) {
        assert!(scripts.iter().all(|script| !script.contains(forbidden)), "{forbidden}");
    }
    let (_, try_it) = get(&rig, "/", "Accept: text/html\r\n").await;
    assert!(try_it.contains("href=\"/ui\""), "the other page leads there");
}

#[tokio::test]
async fn live_has_rows_of_all_shards_and_only_new_ones_since_a_mark() {
    let rig = rig(&[Fake::Good, Fake::Good]);
    rig.healthy().await;
    let first = loop {
        let (status, answer) = rig.get("/live").await;
        assert_eq!(status, 200, "{answer}");
        if answer["rows"] != json!([]) {
            break answer;
        }
        tokio::task::yield_now().await;
    };
    let row = &first["rows"][0];
    assert_eq!((&row["n"], &row["counters"]["cache_hits"]), (&json!(1), &json!(9)));
    assert_eq!((&row["reasons"]["QUEUE_FULL"], &row["shards"][1][0]), (&json!(3), &json!(1)));
    assert_eq!(row["stages"]["round_trip"][0], 2);
    let logic = &first["instances"]["shown"][0];
    assert_eq!((&logic["id"], &logic["ok"]), (&json!("logic-1"), &json!(9)));
    let mark = first["mark"].as_str().unwrap();
    assert!(mark.starts_with("1-1-"), "{mark}");
    let since = rig.get(&format!("/live?since={mark}")).await.1;
    assert!(since["rows"].as_array().unwrap().iter().all(|row| row["n"] != 1), "{since}");
    // A mark of another run has none of these rows.
    let all = rig.get("/live?since=2-99-0").await.1;
    assert_eq!(all["rows"][0]["n"], 1);
    for bad in ["since=yesterday", "since=", "after=1-1-1"] {
        assert_eq!(rig.get(&format!("/live?{bad}")).await.0, 400, "{bad}");
    }
}

#[tokio::test]
async fn pages_of_other_origins_may_read_the_client_library_and_nothing_else() {
    let rig = rig(&[Fake::Good]);
    rig.healthy().await;
    let foreign = "Origin: https://game.example\r\nSec-Fetch-Site: cross-site\r\n";
    for route in ROUTES.iter().filter(|route| route.method() == "GET") {
        let path = route.path.replace("{page}", "tls");
        let is_library = path == "/client.js";
        let (head, body) = get(&rig, &path, &format!("{foreign}Accept: text/html\r\n")).await;
        let expected = if is_library { "http/1.1 200" } else { "http/1.1 403" };
        assert!(head.starts_with(expected), "{path}: {head}");
        for header in ["access-control-allow-origin: *", "cross-origin-resource-policy: cross-or"] {
            assert_eq!(head.contains(header), is_library, "{path}: {head}");
        }
        assert_eq!(body == *page::LIBRARY, is_library, "{path}");
    }
    // No preflight is granted, and no other name of this machine taken (DNS rebinding).
    for (method, host, status) in [
        ("HEAD", rig.admin.to_string(), 200),
        ("OPTIONS", rig.admin.to_string(), 403),
        ("POST", rig.admin.to_string(), 403),
        ("GET", "evil.example".to_owned(), 403),
    ] {
        let request = format!("{method} /client.js HTTP/1.1\r\nHost: {host}\r\n{foreign}\r\n");
        let answer = whole(&rig, &request).await.to_lowercase();
        assert!(answer.starts_with(&format!("http/1.1 {status}")), "{method} {host}: {answer}");
        assert_eq!(answer.contains("access-control"), status == 200, "{method} {host}: {answer}");
    }
}

/// Its source is for who reads it; what is served is for who loads it.
#[test]
fn the_client_library_is_served_without_its_comments() {
    let (source, served) = (include_str!("../../page/shardgate.js"), &*page::LIBRARY);
    let (title, code) = served.split_once("*/\n").expect("it says what it is");
    assert!(title.contains("Client of the shardgate") && source.starts_with(title), "{title}");
    assert!(!code.contains("//") && !code.contains("*/"), "{code}");
    // Nothing but comments is left out.
    let mut lines = served.lines();
    let mut next = lines.next();
    for line in source.lines() {
        let text = line.trim_start();
        if next == line.split(" // ").next() {
            next = lines.next();
        } else {
            assert!(["/**", "* ", "*/", "//"].iter().any(|c| text.starts_with(c)), "{line}");
        }
    }
    assert_eq!(next, None);
}

#[tokio::test]
async fn where_to_connect_is_told_to_who_may_read() {
    let rig = rig(&[Fake::Good]);
    rig.healthy().await;
    let (status, told) = rig.get("/connect").await;
    assert_eq!((status, &told["urls"]), (200, &json!(["ws://127.0.0.1:9000/ws"])));
    let route = json!({ "range": [1000, 1999], "service": "logic", "demo": false, "auth": "none" });
    assert_eq!(told["routes"], json!([route]));
    let endpoint = TlsEndpoint::start();
    let own = "Host: admin.example:8000\r\nAccept: text/html";
    assert_eq!(endpoint.ask("GET /connect", own).await.0, 401);
    let (status, page) = endpoint.ask("GET /", own).await;
    assert_eq!((status, page.starts_with("<!doctype html>")), (200, true), "it still works");
}
