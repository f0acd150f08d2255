//! The length of functions.

use super::{code, sources};

/// Lines of a function, from its `fn` to its last brace.
const LINES_MAX: usize = 70;

/// Functions that may have more, up to so many lines, and why.
const LONG: [(&str, &str, usize, &str); 2] = [
    (
        "src/engine/dispatcher/dedup/tests.rs",
        "behaves_as_a_list_of_all_that_is_remembered",
        85,
        "a model",
    ),
    (
        "src/engine/clients/limiter/tests.rs",
        "the_table_allows_what_a_list_that_forgets_nobody_allows",
        79,
        "a model",
    ),
];

/// Every function of a source that has a body: its name and its lines.
fn functions(text: &str) -> Vec<(String, usize)> {
    let code = code(text);
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        if code[..at].ends_with(is_word) {
            continue;
        }
        let name: String = code[at + 3..].chars().take_while(|c| is_word(*c)).collect();
        if let Some(end) = end_of_body(&code[at..])
            && !name.is_empty()
        {
            found.push((name, code[at..at + end].lines().count()));
        }
    }
    found
}

/// Where the body that begins in `code` ends; `None` if a semicolon comes before any.
fn end_of_body(code: &str) -> Option<usize> {
    let (mut depth, mut inside) = (0_i32, 0_i32);
    for (at, c) in code.char_indices() {
        match c {
            // Of parameters and arrays in the signature.
            '(' | '[' => inside += 1,
            ')' | ']' => inside -= 1,
            ';' if depth == 0 && inside == 0 => return None,
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// The faults of one source.
fn check(path: &str, text: &str, long: &[(&str, &str, usize, &str)]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, lines) in functions(text) {
        let exception = long.iter().find(|(file, function, ..)| *file == path && *function == name);
        match exception {
            None if lines > LINES_MAX => {
                wrong.push(format!("{path}: {name} has {lines} lines: cut it"));
            }
            Some((.., max, _)) if lines > *max => {
                wrong.push(format!("{path}: {name} has {lines} lines, {max} are allowed"));
            }
            Some(_) if lines <= LINES_MAX => {
                wrong.push(format!("{path}: {name} is short enough: take it out of LONG"));
            }
            None | Some(_) => {}
        }
    }
    for (file, name, ..) in long.iter().filter(|(file, ..)| *file == path) {
        if !functions(text).iter().any(|(function, _)| function == name) {
            wrong.push(format!("{file}: {name} is not there: take it out of LONG"));
        }
    }
    wrong
}

#[test]
fn functions_are_short() {
    let sources = sources();
    let mut wrong: Vec<_> =
        sources.iter().flat_map(|(path, text)| check(path, text, &LONG)).collect();
    let gone = |path: &str| sources.iter().all(|(file, _)| file != path);
    let gone = LONG.iter().filter(|(path, ..)| gone(path));
    wrong.extend(gone.map(|(path, name, ..)| format!("{path}: no such file; {name} is in LONG")));
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn long_functions_that_are_planted_are_found() {
    let body = |lines: usize| "    a();\n".repeat(lines - 2);
    let function = |name: &str, lines| format!("fn {name}(a: [u8; 2]) {{\n{}}}\n", body(lines));
    let text = [
        "trait T {\n    fn no_body(&self);\n}\n".to_owned(),
        function("short", 70),
        "const A: &str = \"fn text() {\";\n".to_owned(),
        function("long", 71),
        function("allowed", 80),
        function("grown", 91),
        function("cut", 10),
    ];
    let long = [
        ("a.rs", "allowed", 80, "a list"),
        ("a.rs", "grown", 90, "a list"),
        ("a.rs", "cut", 90, "a list"),
        ("a.rs", "gone", 90, "a list"),
    ];
    let expected = [
        "a.rs: long has 71 lines: cut it",
        "a.rs: grown has 91 lines, 90 are allowed",
        "a.rs: cut is short enough: take it out of LONG",
        "a.rs: gone is not there: take it out of LONG",
    ];
    assert_eq!(check("a.rs", &text.concat(), &long), expected);
}
