//! The guide's page of keys: every key that the code knows is there once, with its rule, its
//! default and whether a reload applies it, and with the meaning that its comment in the files has.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use shardgate::config::change::is_boot;
use shardgate::config::load::{DEFAULT_TOML, Files, GATEWAY_TOML, from_files};
use shardgate::config::rule::{Key, Rule};
use shardgate::config::{Config, Overrides};

/// A table of each list, so that the code reads all their keys. What is not here has a default.
const A_TABLE_OF_EACH_LIST: &str = r#"
    auth.mode = "jwt"
    auth.tenants = "many"
    registry.listen = "127.0.0.1:0"
    tls.listen = "127.0.0.1:0"
    [[auth_key]]
    id = "k"
    algorithm = "ES256"
    public_key_file = "k.pem"
    [[tls_certificate]]
    chain_file = "chain.pem"
    key_file = "key.pem"
    [[registry_token]]
    name = "caller"
    token_file = "token"
    services = ["logic"]
    [[push_caller]]
    name = "mailer"
    token_file = "token"
    to = ["user"]
    [[group]]
    name = "room:*"
    [[service]]
    name = "logic"
    tls = {}
    instances = [{ id = "logic-1", address = "127.0.0.1:50001" }]
    [[route]]
    range = [1000, 1999]
    service = "logic"
    [[tenant]]
    name = "acme"
    quota = {}
    [[tenant.auth_key]]
    id = "k"
    algorithm = "ES256"
    public_key_file = "k.pem"
    [[tenant.route]]
    range = [1000, 1999]
    service = "logic""#;

/// Lists whose tables have the keys of another list, which explains them.
const SAME_KEYS: [(&str, &str); 2] =
    [("tenant.route.", "route."), ("tenant.auth_key.", "auth_key.")];

/// The keys that the code reads, by name.
fn keys_of_the_code() -> BTreeMap<String, Key> {
    let mut files = Files::embedded();
    files.gateway.text = A_TABLE_OF_EACH_LIST.into();
    files.default.text.clear();
    let config: Config = from_files(files, &[], &Overrides::default()).expect("it is right");
    let mut keys = config.keys;
    for (list, same) in SAME_KEYS {
        let is_own = |name: &String| name.starts_with(list);
        let own: Vec<String> = keys.keys().filter(|name| is_own(name)).cloned().collect();
        assert!(!own.is_empty(), "{list}");
        for name in own {
            assert_eq!(keys.remove(&name).as_ref(), keys.get(&name.replace(list, same)), "{name}");
        }
    }
    keys
}

/// A section of a file, or a list of tables, with the comments on its keys.
#[derive(Debug)]
struct Section {
    file: &'static str,
    /// `admin`, `[[route]]`, `[[service]].instances`; empty for keys outside of sections.
    name: String,
    about: String,
    /// Key, value and comment. Keys of lists have no value in the file.
    rows: Vec<(String, Option<String>, String)>,
}

impl Section {
    fn new(file: &'static str, name: &str, about: &str) -> Self {
        Self { file, name: name.into(), about: about.trim().into(), rows: Vec::new() }
    }

    fn is_list(&self) -> bool {
        self.name.starts_with("[[")
    }

    /// Name of a key of this section in the code.
    fn full(&self, key: &str) -> String {
        match self.name.replace(['[', ']'], "").as_str() {
            "" => key.to_owned(),
            section => format!("{section}.{key}"),
        }
    }

    fn heading(&self) -> String {
        match (self.name.as_str(), self.is_list()) {
            ("", _) => "Keys outside of sections".into(),
            (name, true) => name.into(),
            (name, false) => format!("[{name}]"),
        }
    }
}

/// The sections of a file, up to the first table of a list.
fn sections(file: &'static str, text: &str) -> Vec<Section> {
    let mut found = vec![Section::new(file, "", "")];
    let mut comment = String::new();
    for line in text.lines().take_while(|line| !line.starts_with("[[")) {
        let last = found.last_mut().expect("never empty");
        if let Some((name, about)) = line.strip_prefix("# [[").and_then(|l| l.split_once(": ")) {
            found.push(Section::new(file, &format!("[[{name}"), about));
        } else if let Some(more) = line.strip_prefix('#') {
            match (last.is_list(), more.strip_prefix("   ")) {
                (true, Some(row)) if !row.starts_with(' ') => {
                    let (key, text) = row.split_once(' ').expect("a key and its meaning");
                    last.rows.push((key.into(), None, text.trim().into()));
                }
                (true, Some(row)) => {
                    let (.., text) = last.rows.last_mut().expect("a line before it");
                    *text = format!("{text} {}", row.trim());
                }
                (true, None) => last.about = format!("{} {}", last.about, more.trim()),
                (false, _) => comment = format!("{comment} {}", more.trim()),
            }
        } else if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            found.push(Section::new(file, name, &comment));
            comment.clear();
        } else if let Some((key, value)) = line.split_once(" = ") {
            last.rows.push((key.into(), Some(value.into()), comment.trim().into()));
            comment.clear();
        } else {
            comment.clear();
        }
    }
    found.retain(|section| !section.rows.is_empty());
    found
}

/// All sections: those of both files, then the lists.
fn all_sections() -> Vec<Section> {
    let mut all = sections("`gateway.toml`", GATEWAY_TOML);
    all.extend(sections("`default.toml` and `N.toml`", DEFAULT_TOML));
    let (lists, mut others): (Vec<_>, Vec<_>) = all.into_iter().partition(Section::is_list);
    others.extend(lists);
    others
}

/// End of the comment of a key: the values that it takes, its default if the file has no value for
/// it, and whether it is read at the start only.
fn end_of_comment(name: &str, key: &Key, is_in_file: bool) -> String {
    let default = match (is_in_file, &key.default) {
        (true, _) => String::new(),
        (false, Some(default)) => format!("Default {default}. "),
        (false, None) => "Required. ".into(),
    };
    format!(" {}. {default}{}", key.rule.range(name), read(name))
}

fn read(name: &str) -> &'static str {
    if is_boot(name) { "boot" } else { "live" }
}

/// The page from its first table on, as the code and the comments make it. Every key of the code
/// is taken out of `keys`.
fn tables(keys: &mut BTreeMap<String, Key>) -> String {
    let mut page = String::new();
    for section in all_sections() {
        page += &format!("## {}\n\n", section.heading());
        let mut about = format!("In {}. {}", section.file, section.about);
        let list = section.full("");
        if let Some(Key { rule: Rule::Tables(max), .. }) = keys.remove(list.trim_end_matches('.')) {
            about += &format!(" At most {max} tables.");
        }
        page += &wrapped(about.trim());
        page +=
            "\n\n| key | unit | range | default | read | meaning |\n|---|---|---|---|---|---|\n";
        for (key, value, comment) in &section.rows {
            let name = section.full(key);
            let known = keys.remove(&name).unwrap_or_else(|| panic!("no such key: {name}"));
            if let Some(value) = value {
                assert_eq!(Some(value), known.default.as_ref(), "{name}: the file's value");
            }
            let end = end_of_comment(&name, &known, value.is_some());
            let meaning = comment.strip_suffix(&end);
            let meaning = meaning.unwrap_or_else(|| panic!("{name}: {comment}\nmust end:{end}"));
            let default = known.default.map_or("required".into(), |d| format!("`{d}`"));
            let (unit, range) = (known.rule.unit(&name), known.rule.range(&name));
            let cells = [&format!("`{name}`"), unit, &range, &default, read(&name), meaning];
            let odd = cells
                .iter()
                .any(|cell| !cell.starts_with('`') && cell.contains(['|', '<', '*', '\\']));
            assert!(!odd, "a character that Markdown takes for its own in {cells:?}");
            page += &format!("| {} |\n", cells.join(" | "));
        }
        page.push('\n');
    }
    page.trim_end().to_owned() + "\n"
}

/// `text` in lines of at most 110 columns.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last_mut().expect("never empty");
        if last.is_empty() {
            *last = word.into();
        } else if last.chars().count() + 1 + word.chars().count() <= 110 {
            *last = format!("{last} {word}");
        } else {
            lines.push(word.into());
        }
    }
    lines.join("\n")
}

#[test]
fn every_key_of_the_code_is_in_the_page_once_with_its_rule() {
    let mut keys = keys_of_the_code();
    assert!(keys.len() > 100, "{}", keys.len());
    let tables = tables(&mut keys);
    assert!(keys.is_empty(), "no comment in the files explains {keys:#?}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/guide/configuration.md");
    let page = fs::read_to_string(&path).expect("there is the page");
    let start = page.find("## Keys outside of sections\n").expect("the first table");
    if std::env::var("UPDATE_GUIDE").is_ok_and(|v| v == "1") {
        fs::write(&path, format!("{}{tables}", &page[..start])).expect("the tree is writable");
        return;
    }
    let have: Vec<&str> = page[start..].lines().collect();
    let wanted: Vec<&str> = tables.lines().collect();
    assert_eq!(have, wanted, "UPDATE_GUIDE=1 cargo test --test it guide_keys writes them anew");
}
