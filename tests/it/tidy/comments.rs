//! The form of comments: a doc comment names its subject.

use super::sources;

/// Files whose comments are held to these rules.
const PLACES: [&str; 3] = ["src/docs/", "src/lib.rs", "perf/"];

/// Beginnings that no doc comment has: a relative without its noun.
const BEGINNINGS: [&str; 4] = ["Who ", "Whose ", "Those ", "What is "];

/// Faults of the comments of one source.
fn check(path: &str, text: &str) -> Vec<String> {
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
    }
    wrong
}

#[test]
fn comments_name_their_subject() {
    let mut sources = sources();
    sources.retain(|(path, _)| PLACES.iter().any(|place| path.starts_with(place)));
    let wrong: Vec<_> = sources.iter().flat_map(|(path, text)| check(path, text)).collect();
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
    assert_eq!(check("a.rs", text), expected);
}
