//! The promises: comments cite numbers that are on their page, and the page names tests that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::{ROOT, sources};

/// The page, by its path in the repository.
const PAGE: &str = "src/docs/promises.md";

/// Numbers of the promises that have a chapter of their own.
fn promised(page: &str) -> BTreeSet<u32> {
    let headings = page.lines().filter_map(|line| line.strip_prefix("## Promise "));
    headings.filter_map(|rest| rest.split(':').next()?.parse().ok()).collect()
}

/// Numbers that a text cites: "promise 7", "promises 2, 7 and 9", over the ends of lines, too.
fn cited(text: &str) -> BTreeSet<u32> {
    let bare = |line: &str| {
        let line = line.trim_start();
        let marks = ["//!", "///", "//"];
        let rest = marks.iter().find_map(|mark| line.strip_prefix(mark));
        rest.unwrap_or(line).to_lowercase()
    };
    let text = text.lines().map(bare).collect::<Vec<_>>().join(" ");
    let mut found = BTreeSet::new();
    for (at, word) in text.match_indices("promise") {
        let rest = &text[at + word.len()..];
        let (mut rest, many) = match rest.strip_prefix('s') {
            Some(rest) => (rest, true),
            None => (rest, false),
        };
        while let Some((number, after)) = leading_number(rest.trim_start()) {
            found.insert(number);
            let next = [",", " and", " or"].iter().find_map(|joint| after.strip_prefix(joint));
            match next {
                Some(next) if many => rest = next.strip_prefix(" and").unwrap_or(next),
                Some(_) | None => break,
            }
        }
    }
    found
}

fn leading_number(text: &str) -> Option<(u32, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    Some((text[..digits].parse().ok()?, &text[digits..]))
}

/// The tests named on the page, by promise: of each list item the path and the names behind it.
fn named_tests(page: &str) -> BTreeMap<u32, Vec<(String, String)>> {
    let mut found: BTreeMap<u32, Vec<(String, String)>> = BTreeMap::new();
    let (mut promise, mut path) = (0, None);
    for line in page.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            let number = heading.strip_prefix("Promise ").and_then(leading_number);
            promise = number.map_or(0, |(number, _)| number);
        }
        if !line.starts_with("  ") {
            path = None;
        }
        for span in line.split('`').skip(1).step_by(2) {
            match &path {
                None if line.starts_with("- `") && span.ends_with(".rs") => path = Some(span),
                Some(path) if promise > 0 => {
                    found.entry(promise).or_default().push(((*path).into(), span.into()));
                }
                Some(_) | None => {}
            }
        }
    }
    found
}

/// Whether a source has a test of that name.
fn has_test(text: &str, name: &str) -> bool {
    text.match_indices(&format!("fn {name}(")).any(|(at, _)| {
        let mut above = text[..at].lines().rev().map(str::trim);
        let is_head =
            |line: &&str| line.is_empty() || line.starts_with("#[") || line.starts_with("//");
        above.by_ref().take_while(is_head).any(|line| line == "#[test]")
    })
}

/// The faults of a page of promises and the sources that cite it.
fn check(page: &str, sources: &[(String, String)]) -> Vec<String> {
    let (promised, tests) = (promised(page), named_tests(page));
    let mut wrong = Vec::new();
    for (path, text) in sources {
        for number in cited(text).difference(&promised) {
            wrong.push(format!("{path}: cites promise {number}, which {PAGE} does not have"));
        }
    }
    for number in &promised {
        if !tests.contains_key(number) {
            wrong.push(format!("{PAGE}: promise {number} names no test"));
        }
    }
    for (path, name) in tests.values().flatten() {
        let file = sources.iter().find(|(known, _)| known == path);
        if file.is_some_and(|(_, text)| has_test(text, name)) {
            continue;
        }
        let elsewhere = sources.iter().find(|(_, text)| has_test(text, name));
        let hint = elsewhere.map_or("nowhere".into(), |(path, _)| format!("in {path}"));
        wrong.push(format!("{PAGE}: {path} has no test {name}; it is {hint}"));
    }
    wrong
}

/// The pages in Markdown that cite promises.
fn pages() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for dir in ["", "src/docs", "perf", ".github"] {
        let entries = fs::read_dir(Path::new(ROOT).join(dir)).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            if path.extension().is_some_and(|e| e == "md") {
                let text = fs::read_to_string(&path).expect("UTF-8");
                found.push((path.display().to_string(), text));
            }
        }
    }
    found
}

#[test]
fn promises_that_are_cited_exist_and_name_their_tests() {
    let page = fs::read_to_string(Path::new(ROOT).join(PAGE)).expect("the page is there");
    let numbers = (1..=23).collect();
    assert_eq!(promised(&page), numbers, "the numbers are for ever");
    let mut all = sources();
    all.retain(|(path, _)| path != "tests/it/tidy/promises.rs");
    all.extend(pages());
    let wrong = check(&page, &all);
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn what_is_planted_in_promises_is_found() {
    let page = "## Promise 1: a\n\n- `tests/a.rs`: `holds`,\n  `gone`\n\n## Promise 2: b\n\nNo.\n";
    let source = |path: &str, text: &str| (path.to_owned(), text.to_owned());
    let sources = [
        source("tests/a.rs", "#[test]\nfn holds() {}\nfn gone() {}\n"),
        source("tests/b.rs", "/// Promises 1,\n/// 2 and 3.\n#[test]\nfn gone() {}\n"),
        source("src/c.rs", "// promise 1 and 7 others; promised 9 times; Promise 4.\n"),
    ];
    let expected = [
        "tests/b.rs: cites promise 3, which src/docs/promises.md does not have",
        "src/c.rs: cites promise 4, which src/docs/promises.md does not have",
        "src/docs/promises.md: promise 2 names no test",
        "src/docs/promises.md: tests/a.rs has no test gone; it is in tests/b.rs",
    ];
    assert_eq!(check(page, &sources), expected);
}
