//! The form of comments: a doc comment names its subject, and a page that is cited can be found.

use std::fs;
use std::path::Path;

use super::{ROOT, sources};

/// Files whose comments are held to these rules.
const PLACES: [&str; 3] = ["src/", "tests/", "perf/"];

/// Beginnings that no doc comment has: a relative without its noun.
const BEGINNINGS: [&str; 4] = ["Who ", "Whose ", "Those ", "What is "];

/// Pages that were once cited and are no part of the repository.
const PAGES: [&str; 3] =
    [concat!("design", ".md"), concat!("faults", ".md"), concat!("engineering", ".md")];

/// Faults of the comments of one source; `exists` says whether a page can be found.
fn check(path: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut inside = "";
    for (n, line) in text.lines().enumerate() {
        let line = line.trim_start();
        let mark = ["//!", "///"].into_iter().find(|mark| line.starts_with(mark)).unwrap_or("");
        if !mark.is_empty() && mark != inside {
            let said = line[mark.len()..].trim_start();
            if let Some(word) = BEGINNINGS.iter().find(|word| said.starts_with(**word)) {
                wrong.push(format!("{path}: line {}: begins with {word:?}: name it", n + 1));
            }
        }
        inside = mark;
        for page in PAGES {
            if line.contains(page) && !exists(page) {
                wrong.push(format!("{path}: line {}: {page} is not in the repository", n + 1));
            }
        }
    }
    wrong
}

#[test]
fn comments_name_their_subject_and_cite_what_is_there() {
    let exists = |page: &str| {
        let dirs = ["", "src/docs", "perf", ".github"];
        dirs.iter().any(|dir| fs::exists(Path::new(ROOT).join(dir).join(page)).unwrap_or(false))
    };
    let mut sources = sources();
    sources.retain(|(path, _)| PLACES.iter().any(|place| path.starts_with(place)));
    let wrong: Vec<_> = sources.iter().flat_map(|(path, text)| check(path, text, exists)).collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn comments_that_are_planted_are_found() {
    let text = "//! A file.\n//! Who reads on, reads this.\n/// Whose it is.\nstruct A;\n\
                /// The one.\n/// Those of it.\nstruct B;\n// Who and whose.\n/// What is there.\n\
                /// Who comes.\nfn f() {}\n    /// Those here.\n/// Whoever comes.\nfn g() {}\n";
    let expected = [
        "a.rs: line 3: begins with \"Whose \": name it",
        "a.rs: line 9: begins with \"What is \": name it",
        "a.rs: line 12: begins with \"Those \": name it",
    ];
    assert_eq!(check("a.rs", text, |_| false), expected);
}

#[test]
fn pages_that_are_planted_are_found() {
    let page = PAGES[0];
    let text = format!("//! A file.\nfn f() {{}} // see {page} section 2\n");
    let expected = [format!("a.rs: line 2: {page} is not in the repository")];
    assert_eq!(check("a.rs", &text, |_| false), expected);
    assert!(check("a.rs", &text, |_| true).is_empty());
}
