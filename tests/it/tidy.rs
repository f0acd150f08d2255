//! Rules about the source itself: who may know whom, and what stands in no file.

mod comments;
mod functions;
mod promises;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The repository.
pub(crate) const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The vocabulary: what every layer may name.
const WORDS: [&str; 12] = [
    "ids", "limits", "inspect", "message", "origin", "peers", "plain", "push", "stats", "trace",
    "lanes", "mailbox",
];

/// Every module of the crate, and what it may name beside itself (and the vocabulary, from
/// `config` on). Vocabulary < routing < config, wire < engine, backend < shard, and beside it
/// control < boot, cli, main.
const MAY_NAME: [(&str, &[&str]); 34] = [
    ("ids", &[]),
    ("limits", &[]),
    ("plain", &[]),
    ("origin", &[]),
    ("peers", &[]),
    ("message", &["ids"]),
    ("push", &["ids", "message"]),
    ("stats", &["ids", "message"]),
    ("inspect", &["ids", "message", "push"]),
    ("trace", &["stats"]),
    ("lanes", &["ids"]),
    // Control hands the shards whole states, so the command that carries one names its parts.
    (
        "mailbox",
        &[
            "ids",
            "inspect",
            "push",
            "stats",
            "trace",
            "routing",
            "config::settings",
            "auth",
            "tls::server",
            "tls::service",
        ],
    ),
    // The ground of both halves of the engine, of configuration and of control.
    ("routing", &[]),
    ("config", &["routing"]),
    ("wire", &[]),
    ("auth", &["config"]),
    ("tls", &["config"]),
    ("engine", &["routing", "config", "wire", "auth"]),
    // Sockets that are ready: what the two with sockets stand on.
    ("readiness", &[]),
    ("backend", &["routing", "config", "wire", "tls", "readiness"]),
    ("shard", &["routing", "config", "wire", "tls", "engine", "backend", "readiness", "clock"]),
    // The wall clock, for dates of certificates and tokens.
    ("clock", &[]),
    // Never `shard` nor `engine`: it speaks to them through the mailbox.
    ("control", &["routing", "config", "wire", "auth", "tls", "clock", "guide"]),
    // What else can be started: each stands on as little as it can.
    // Its rooms push.
    ("demo", &["config", "wire::push"]),
    ("echo", &["wire", "config::settings", "tls", "clock"]),
    // A client: the protocol, and how a command of this program is written.
    ("bench", &["config::program", "wire", "tls", "clock"]),
    ("preflight", &["config", "engine::clients", "memory"]),
    // What a configuration may come to in bytes: it names what takes them.
    (
        "memory",
        &[
            "routing",
            "config",
            "auth::keys",
            "engine",
            "shard",
            "control::live",
            "control::log",
            "control::marks",
            "tls::session",
        ],
    ),
    (
        "cli",
        &[
            "routing",
            "config",
            "auth",
            "tls",
            "bench",
            "preflight",
            "memory",
            "clock",
            "guide",
            "control::token",
            "control::jwks_fetch",
        ],
    ),
    (
        "boot",
        &[
            "routing",
            "config",
            "auth",
            "tls",
            "engine",
            "shard",
            "control",
            "demo",
            "cli",
            "clock",
            "preflight",
        ],
    ),
    ("main", &["boot", "cli", "demo", "echo"]),
    // Pages; no code.
    ("docs", &[]),
    // Pages that the program shows.
    ("guide", &[]),
    ("lib", &[]),
];

/// Where a library may be named, and nowhere else.
const LIBRARIES: [(&str, &[&str]); 2] = [
    ("glommio", &["src/readiness.rs", "src/shard/", "src/backend/channel/", "src/boot.rs"]),
    // The runtime; its I/O traits also in the channel, because h2 asks for them.
    // And in the crowd of clients that measures, which is no part of the gateway.
    ("tokio", &["src/control/", "src/demo/", "src/backend/channel/", "perf/crowd/"]),
];

/// Lines of a file.
const LINES_MAX: usize = 600;
/// Files that may have more, up to so many lines, and why.
const LONG_FILES: [(&str, usize, &str); 0] = [];
/// Columns of a line.
const COLUMNS_MAX: usize = 100;

/// Files where nothing may read a clock.
const CLOCKLESS: [&str; 5] = ["src/engine/", "src/wire/", "src/config/", "src/auth/", "src/tls/"];
/// Files where nothing may lock.
const LOCKLESS: [&str; 5] = ["src/engine/", "src/shard/", "src/backend/", "src/auth/", "src/tls/"];

/// Folders whose modules may not import each other in a circle. A circle through the folder's own
/// `mod.rs` is none: children use what their parent holds, and it calls them.
const NO_CIRCLES: [&str; 4] =
    ["src/config", "src/engine", "src/engine/clients", "src/engine/dispatcher"];

/// `text` with comments, strings and characters blanked, so that what is left is code.
pub(crate) fn code(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let blank = |out: &mut Vec<u8>, from: usize, to: usize| {
        let end = to.min(out.len());
        out[from..end].iter_mut().filter(|b| **b != b'\n').for_each(|b| *b = b' ');
    };
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text.as_bytes()[at..];
        let end = if rest.starts_with(b"//") {
            rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            rest.windows(2).position(|w| w == b"*/").map_or(rest.len(), |n| n + 2)
        } else if let Some(hashes) = raw_string(rest, at.checked_sub(1).map(|n| bytes[n])) {
            let close = [&b"\""[..], &b"#".repeat(hashes)].concat();
            let from = hashes + 2;
            let found = rest[from..].windows(close.len()).position(|w| w == close);
            found.map_or(rest.len(), |n| from + n + close.len())
        } else if rest[0] == b'"' {
            quoted(rest, b'"')
        } else if rest[0] == b'\'' && is_char(rest) {
            quoted(rest, b'\'')
        } else {
            at += 1;
            continue;
        };
        blank(&mut out, at, at + end);
        at += end;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Number of hashes, if a raw string begins here.
fn raw_string(rest: &[u8], before: Option<u8>) -> Option<usize> {
    let in_word = before.is_some_and(|b| (b.is_ascii_alphanumeric() && b != b'b') || b == b'_');
    let hashes = rest.strip_prefix(b"r")?.iter().take_while(|b| **b == b'#').count();
    (!in_word && rest.get(hashes + 1) == Some(&b'"')).then_some(hashes)
}

/// Whether a quote begins a character and not a lifetime.
fn is_char(rest: &[u8]) -> bool {
    rest.get(1) == Some(&b'\\')
        || std::str::from_utf8(&rest[1..rest.len().min(6)])
            .or_else(|e| std::str::from_utf8(&rest[1..1 + e.valid_up_to()]))
            .is_ok_and(|s| s.chars().nth(1) == Some('\''))
}

/// Length of something in quotes, escapes included.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

/// The part before the tests at a file's end; nothing of a file that is all tests.
pub(crate) fn without_tests<'a>(path: &str, code: &'a str) -> &'a str {
    if path.contains("/tests/") || path.ends_with("/tests.rs") || path.starts_with("tests/") {
        return "";
    }
    let inline = code.match_indices("#[cfg(test)]\nmod ").find(|(at, _)| {
        let line = code[*at..].lines().nth(1).unwrap_or_default();
        line.trim_end().ends_with('{')
    });
    &code[..inline.map_or(code.len(), |(at, _)| at)]
}

/// Paths that begin with `prefix`, as far as two names: `a::b` of `crate::a::b::C`.
fn named(code: &str, prefix: &str) -> BTreeSet<String> {
    let starts = code.match_indices(prefix).map(|(at, _)| &code[at + prefix.len()..]);
    starts.flat_map(paths).map(|path| first_names(&path, 2)).collect()
}

/// The first `count` names of a path.
fn first_names(path: &str, count: usize) -> String {
    path.split("::").take(count).collect::<Vec<_>>().join("::")
}

/// The path at the beginning of `text`; all paths of a group: `a::b` and `a::c` of `a::{b, c}`.
fn paths(text: &str) -> Vec<String> {
    let text = text.trim_start();
    if let Some(group) = text.strip_prefix('{') {
        return group_of(group).iter().flat_map(|part| paths(part)).collect();
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let below = rest.strip_prefix("::").map(paths).unwrap_or_default();
    let below = below.iter().filter(|path| !path.is_empty());
    let joined: Vec<String> = below.map(|path| format!("{name}::{path}")).collect();
    if joined.is_empty() { vec![name.to_owned()] } else { joined }
}

/// The parts of `a, b::{c, d}} …` up to the brace that closes it.
fn group_of(text: &str) -> Vec<String> {
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for c in text.chars() {
        match c {
            '}' if depth == 0 => break,
            ',' if depth == 0 => parts.push(String::new()),
            c => {
                depth += i32::from(c == '{') - i32::from(c == '}');
                parts.last_mut().expect("never empty").push(c);
            }
        }
    }
    parts.retain(|part| !part.trim().is_empty());
    parts
}

/// Whether the wall between the halves of the engine stands: clients know nothing of services, and
/// what a half is lent does not grow into a hall.
fn check_halves(inside: &str, product: &str, say: &mut impl FnMut(String)) {
    if inside.starts_with("engine/clients/") && product.contains("dispatcher") {
        say("names the dispatcher: clients know nothing of services".into());
    }
    let Some((_, lent)) = product.split_once("struct Context<'a> {") else { return };
    let fields = lent.split('}').next().unwrap_or_default().matches(": ").count();
    if inside == "engine/mod.rs" && fields > 6 {
        say(format!("Context has {fields} fields, at most 6: give a half its own state"));
    }
}

/// The faults of one file.
fn check(path: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut say = |what: String| wrong.push(format!("{path}: {what}"));
    if !text.starts_with("//!") {
        say("must start with a //! line that says what it is for".into());
    }
    let lines = text.lines().count();
    let long = LONG_FILES.iter().find(|(name, ..)| *name == path);
    if lines > long.map_or(LINES_MAX, |(_, max, _)| *max) {
        say(format!("{lines} lines: cut it, or give a reason in LONG_FILES"));
    }
    if long.is_some() && lines <= LINES_MAX {
        say("is short enough: take it out of LONG_FILES".into());
    }
    for (n, line) in text.lines().enumerate() {
        if line.chars().count() > COLUMNS_MAX {
            say(format!("line {}: over {COLUMNS_MAX} columns", n + 1));
        }
    }
    for word in [concat!("FIX", "ME"), concat!("TO", "DO"), concat!("XX", "X")] {
        if text.split(|c: char| !c.is_alphanumeric()).any(|found| found == word) {
            say(format!("{word}: do it, or open an issue"));
        }
    }
    let code = code(text);
    for forbidden in ["#[ignore", "todo!", "unimplemented!", "dbg!"] {
        if code.contains(forbidden) {
            say(format!("{forbidden} in the code"));
        }
    }
    let product = without_tests(path, &code);
    let within = |list: &[&str]| list.iter().any(|start| path.starts_with(start));
    if product.contains(".unwrap()") {
        say(".unwrap() outside of tests: expect(\"why it holds\")".into());
    }
    if within(&CLOCKLESS) && ["Instant::now", "SystemTime::now"].iter().any(|c| product.contains(c))
    {
        say("reads a clock: the time is passed in".into());
    }
    if within(&LOCKLESS) && ["Mutex", "RwLock"].iter().any(|lock| product.contains(lock)) {
        say("locks: nothing is shared on the data path".into());
    }
    let words: BTreeSet<&str> = product.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    for (library, places) in LIBRARIES {
        if words.contains(library) && !within(places) {
            say(format!("names {library}, which belongs into {places:?}"));
        }
    }
    if let Some(inside) = path.strip_prefix("src/") {
        check_order(inside, product, &mut say);
        check_halves(inside, product, &mut say);
    }
    wrong
}

/// Whether a file names only what lies below it.
fn check_order(inside: &str, product: &str, say: &mut impl FnMut(String)) {
    let module = inside.split(['/', '.']).next().unwrap_or_default();
    let Some((_, below)) = MAY_NAME.iter().find(|(name, _)| *name == module) else {
        say(format!("module {module} is not in MAY_NAME: say what it may name"));
        return;
    };
    let own_words = if WORDS.contains(&module) { &[][..] } else { &WORDS[..] };
    let prefix = if module == "main" { "shardgate::" } else { "crate::" };
    for path in named(product, prefix) {
        let first = path.split("::").next().unwrap_or_default();
        let allowed = first == module
            || own_words.contains(&first)
            || below.iter().any(|name| *name == first || *name == path);
        if !allowed {
            say(format!("names {path}, which is not below {module}"));
        }
    }
    // src/a.rs is one level deep, src/a/b.rs two; as many `super` reach the crate's root.
    let parts: Vec<&str> = inside.split('/').collect();
    let depth = parts.len() - usize::from(parts.last() == Some(&"mod.rs"));
    let out = "super::".repeat(depth);
    if module != "main" && module != "lib" && product.contains(&out) {
        say(format!("leaves {module} by {out}: use crate::"));
    }
}

/// The module of `folder` that the file at `path` is or belongs to; `None` for the folder's own
/// `mod.rs` and for files elsewhere. With it, how many `super::` lead from the file to the folder.
fn module_of<'a>(folder: &str, path: &'a str) -> Option<(&'a str, usize)> {
    let inside = path.strip_prefix(folder)?.strip_prefix('/')?;
    let parts: Vec<&str> = inside.split('/').collect();
    let depth = parts.len() - usize::from(parts.last() == Some(&"mod.rs"));
    let name = parts[0].strip_suffix(".rs").unwrap_or(parts[0]);
    (depth > 0).then_some((name, depth))
}

/// Which modules of `folder` each of them names, by `super::` or by `crate::`.
fn siblings_named(folder: &str, files: &[(String, String)]) -> BTreeMap<String, BTreeSet<String>> {
    let inside = |path: &str| module_of(folder, path).map(|(name, depth)| (name.to_owned(), depth));
    let modules: BTreeSet<String> =
        files.iter().filter_map(|(path, _)| Some(inside(path)?.0)).collect();
    let folder_path = folder.strip_prefix("src/").unwrap_or(folder).replace('/', "::");
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in files {
        let Some((module, depth)) = inside(path) else { continue };
        let code = code(text);
        let product = without_tests(path, &code);
        let out = "super::".repeat(depth);
        let by_super = product.match_indices(&out).filter(|(at, _)| {
            // A longer chain of `super` begins before this one, and leads further out.
            !product[..*at].ends_with("super::") && !product[at + out.len()..].starts_with("super")
        });
        let mut named: BTreeSet<String> =
            by_super.flat_map(|(at, _)| paths(&product[at + out.len()..])).collect();
        let by_crate = product.match_indices("crate::").map(|(at, start)| at + start.len());
        let by_crate = by_crate.flat_map(|at| paths(&product[at..]));
        let below = format!("{folder_path}::");
        named.extend(by_crate.filter_map(|path| Some(path.strip_prefix(&below)?.to_owned())));
        let named = named.iter().map(|path| first_names(path, 1));
        let siblings = named.filter(|name| modules.contains(name) && *name != module);
        edges.entry(module.clone()).or_default().extend(siblings);
    }
    edges
}

/// Modules that `from` names, and those that these name, and so on.
fn reach<'a>(edges: &'a BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<&'a str> {
    let (mut seen, mut left) = (BTreeSet::new(), vec![from]);
    while let Some(at) = left.pop() {
        for name in edges.get(at).into_iter().flatten() {
            if seen.insert(name.as_str()) {
                left.push(name);
            }
        }
    }
    seen
}

/// Modules of `folder` that import each other in a circle, each circle as one line.
fn circles(folder: &str, files: &[(String, String)]) -> Vec<String> {
    let edges = siblings_named(folder, files);
    let circle = |name: &String| {
        let mut circle = reach(&edges, name);
        circle.retain(|other| reach(&edges, other).contains(name.as_str()));
        circle.into_iter().collect::<Vec<_>>().join(", ")
    };
    let found: BTreeSet<String> = edges.keys().map(circle).filter(|c| !c.is_empty()).collect();
    found.iter().map(|circle| format!("{folder}: a circle of imports: {circle}")).collect()
}

/// All .rs files of the repository that are written by hand.
pub(crate) fn sources() -> Vec<(String, String)> {
    let root = Path::new(ROOT);
    let mut found = Vec::new();
    let mut left: Vec<_> = ["src", "tests", "proto", "perf"].map(|d| root.join(d)).into();
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).expect("a directory of the repository").flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root).expect("below it").to_string_lossy();
                found.push((name.into_owned(), fs::read_to_string(&path).expect("UTF-8")));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn the_source_keeps_its_own_rules() {
    let sources = sources();
    assert!(sources.len() > 80, "it looks in the right place");
    let wrong = sources.iter().flat_map(|(path, text)| check(path, text));
    let named = siblings_named("src/config", &sources);
    assert!(named["load"].contains("reader"), "it sees what a module imports");
    let circles = NO_CIRCLES.iter().flat_map(|folder| circles(folder, &sources));
    let wrong: Vec<String> = wrong.chain(circles).collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn the_checker_finds_what_is_planted() {
    let head = "//! Something.\n";
    let long = "x".repeat(101);
    let planted = [
        ("src/ids.rs", "fn f() {}".to_owned(), "must start"),
        ("src/ids.rs", format!("{head}{}", "\n".repeat(600)), "601 lines"),
        ("src/ids.rs", format!("{head}// {long}"), "line 2: over 100"),
        ("src/ids.rs", format!("{head}// {}ME: later", "FIX"), "open an issue"),
        ("tests/it/a.rs", format!("{head}#[ignore]\nfn f() {{}}"), "#[ignore"),
        ("src/ids.rs", format!("{head}fn f() {{ todo!() }}"), "todo!"),
        ("src/ids.rs", format!("{head}fn f() {{ a.unwrap(); }}"), "unwrap"),
        ("src/engine/a.rs", format!("{head}fn f() {{ Instant::now(); }}"), "clock"),
        ("src/wire/a.rs", format!("{head}fn f() {{ SystemTime::now(); }}"), "clock"),
        ("src/shard/a.rs", format!("{head}use std::sync::Mutex;"), "locks"),
        ("src/engine/a.rs", format!("{head}use glommio::timer;"), "names glommio"),
        ("src/shard/a.rs", format!("{head}use tokio::net;"), "names tokio"),
        ("src/engine/a.rs", format!("{head}use crate::shard::Net;"), "names shard::Net"),
        ("src/control/a.rs", format!("{head}use crate::shard;"), "names shard,"),
        ("src/control/a.rs", format!("{head}fn f() {{ crate::engine::g(); }}"), "names engine::g"),
        ("src/wire/a.rs", format!("{head}use crate::{{limits, engine::{{a, b}}}};"), "engine"),
        ("src/ids.rs", format!("{head}use crate::routing::Ring;"), "names routing::Ring"),
        ("src/mailbox.rs", format!("{head}use crate::config::load;"), "names config::load"),
        ("src/engine/a.rs", format!("{head}use super::super::shard;"), "leaves engine"),
        ("src/config/mod.rs", format!("{head}use super::shard;"), "leaves config"),
        (
            "src/engine/clients/a.rs",
            format!("{head}use crate::engine::dispatcher::Dispatcher;"),
            "know nothing of services",
        ),
        (
            "src/engine/mod.rs",
            format!("{head}struct Context<'a> {{ a: A, b: B, c: C, d: D, e: &'a E, f: F, g: G }}"),
            "Context has 7 fields",
        ),
        ("src/new.rs", head.into(), "MAY_NAME"),
        ("src/main.rs", format!("{head}use shardgate::shard;"), "names shard"),
    ];
    for (path, text, expected) in planted {
        let found = check(path, &text);
        assert!(found.iter().any(|line| line.contains(expected)), "{path}: {text:?}: {found:?}");
    }
}

#[test]
fn the_checker_finds_nothing_where_nothing_is() {
    let head = "//! Something.\n";
    let texts = [
        ("src/engine/a.rs", "use crate::{routing::Ring, ids::{ConnId, MsgKey}, wire};"),
        ("src/engine/a.rs", "// glommio, Instant::now and crate::shard in words\nfn f() {}"),
        ("src/engine/a.rs", "const A: &str = \"crate::shard \\\" Mutex\";"),
        ("src/engine/a.rs", "const A: &str = r#\"a\" crate::shard\"#;\nconst B: char = '\"';"),
        ("src/engine/a.rs", "fn f<'a>(a: &'a str) -> char { '\\'' }"),
        ("src/engine/a.rs", "#[cfg(test)]\nmod tests {\n    use crate::shard;\n    a.unwrap();\n}"),
        ("src/engine/a/tests.rs", "use crate::shard; fn f() { a.unwrap(); Instant::now(); }"),
        ("src/engine/a.rs", "#[cfg(test)]\nmod tests;\nuse crate::ids::ConnId;"),
        ("src/mailbox.rs", "use crate::routing::Snapshot;"),
        ("src/engine/a/b.rs", "use super::super::ids;"),
    ];
    for (path, text) in texts {
        assert_eq!(check(path, &format!("{head}{text}\n")), Vec::<String>::new(), "{text}");
    }
}

/// Files of a folder `src/a`, by their names and texts.
fn folder(files: &[(&str, &str)]) -> Vec<(String, String)> {
    files.iter().map(|(name, text)| (format!("src/a/{name}"), (*text).to_owned())).collect()
}

#[test]
fn a_planted_circle_is_found() {
    let planted = [
        (&[("b.rs", "use super::c::C;"), ("c.rs", "use super::b;")][..], "b, c"),
        (&[("b.rs", "use crate::a::c;"), ("c.rs", "fn f() { super::b::g(); }")], "b, c"),
        (&[("b.rs", "use super::{d, c::{C, D}};"), ("c.rs", "use crate::{a::{b::B}};")], "b, c"),
        (
            &[("b.rs", "use super::c;"), ("c.rs", "use super::d;"), ("d.rs", "use super::b;")],
            "b, c, d",
        ),
        // A file in a folder of its own belongs to the module of that name.
        (&[("b/x.rs", "use super::super::c;"), ("c.rs", "use super::b::x;")], "b, c"),
        (&[("b/mod.rs", "use super::c;"), ("c/mod.rs", "use super::b;")], "b, c"),
    ];
    for (files, expected) in planted {
        let expected = format!("src/a: a circle of imports: {expected}");
        assert_eq!(circles("src/a", &folder(files)), [expected], "{files:?}");
    }
}

#[test]
fn no_circle_is_found_where_none_is() {
    let sound = [
        &[("b.rs", "use super::c;"), ("c.rs", "use super::d;"), ("d.rs", "")][..],
        // Through the parent, within one module, in words, in tests, and out of the folder.
        &[
            ("mod.rs", "use b::B; pub use c::C;"),
            ("b.rs", "use super::C;"),
            ("c.rs", "use super::B;"),
        ],
        &[("b.rs", "use b::x; use super::c;"), ("b/x.rs", "use super::y;"), ("c.rs", "")],
        &[("b.rs", "use super::c;"), ("c.rs", "// super::b\nconst A: &str = \"super::b\";")],
        &[("b.rs", "use super::c;"), ("c.rs", "#[cfg(test)]\nmod tests {\n use super::b;\n}")],
        &[("b.rs", "use super::c;"), ("c/tests.rs", "use super::super::b;"), ("c.rs", "")],
        &[("b.rs", "use super::c;"), ("c.rs", "use super::super::b; use crate::b;")],
        &[("b.rs", "use super::c;"), ("c/x.rs", "use super::b;"), ("c/b.rs", "")],
    ];
    for files in sound {
        assert_eq!(circles("src/a", &folder(files)), Vec::<String>::new(), "{files:?}");
    }
}
