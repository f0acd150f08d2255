//! The log filter: which lines are logged, by level and by the module that writes them.

use tracing::level_filters::{LevelFilter, STATIC_MAX_LEVEL};
use tracing_subscriber::filter::Targets;

use super::nearest::nearest;

/// Longest filter: its text is kept, and it is evaluated for each new place that logs.
const FILTER_BYTES_MAX: usize = 1024;
/// Rule of a filter, with what to write instead.
const RULE: &str = "must be a level (error, warn, info, debug, trace or off), or a list of a level \
     and of MODULE=LEVEL, e.g. \"info\" or \"warn,shardgate::backend=info\"";
/// Words for levels.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Modules of this program that log (a test holds the list against the sources). A filter may name
/// one of them or a module that they are in.
const OWN: [&str; 42] = [
    "shardgate::backend::channel::driver",
    "shardgate::boot",
    "shardgate::control",
    "shardgate::control::active_config",
    "shardgate::control::admin",
    "shardgate::control::admin::sockets",
    "shardgate::control::caller_conns",
    "shardgate::control::certificates",
    "shardgate::control::directory",
    "shardgate::control::discovery::etcd",
    "shardgate::control::discovery::registry",
    "shardgate::control::discovery::registry::service",
    "shardgate::control::dump",
    "shardgate::control::event_loop",
    "shardgate::control::fleet",
    "shardgate::control::histogram_log",
    "shardgate::control::log",
    "shardgate::control::log::repeats",
    "shardgate::control::probe",
    "shardgate::control::push",
    "shardgate::control::push::conns",
    "shardgate::control::push::refusal",
    "shardgate::control::service_manager",
    "shardgate::control::shards",
    "shardgate::control::source_tables",
    "shardgate::control::sources",
    "shardgate::control::token_keys",
    "shardgate::engine::clients",
    "shardgate::engine::clients::handshake",
    "shardgate::engine::clients::introduction",
    "shardgate::engine::clients::resume",
    "shardgate::engine::clients::sign_in",
    "shardgate::engine::dispatcher::failures",
    "shardgate::engine::dispatcher::held_back",
    "shardgate::engine::events",
    "shardgate::engine::service_pushes",
    "shardgate::engine::stats",
    "shardgate::engine::turn",
    "shardgate::shard",
    "shardgate::shard::net::accept",
    "shardgate::shard::net::channels",
    "shardgate::shard::net::shard_io",
];
/// Libraries in this program that log.
const LIBRARIES: [&str; 14] = [
    "glommio",
    "h2",
    "hickory_net",
    "hickory_proto",
    "hickory_resolver",
    "hyper",
    "hyper_util",
    "mio",
    "rustls",
    "tonic",
    "tower",
    "tungstenite",
    "ureq",
    "ureq_proto",
];

/// Reads a filter. The error is its rule, what in it breaks that, and the nearest right word.
pub(crate) fn read(text: &str) -> Result<Targets, String> {
    if text.len() > FILTER_BYTES_MAX {
        return Err(format!("{RULE}; it has at most {FILTER_BYTES_MAX} bytes"));
    }
    // rustls warns of alerts that clients send, so that any client could fill the log; sessions
    // count them, and log them at debug. A filter that names rustls turns it on again.
    let mut filter = Targets::new().with_target("rustls", LevelFilter::OFF);
    let mut default = None;
    let wrong = |why: String| Err(format!("{RULE}; {why}"));
    if parts(text).next().is_none() {
        return wrong(no_level(""));
    }
    for part in parts(text) {
        let Some((module, word)) = halves(part) else {
            // All that a module says, as other programs read it.
            if is_module(part) {
                filter = filter.with_target(part, LevelFilter::TRACE);
                continue;
            }
            let Some(level) = level(part) else { return wrong(no_level(part)) };
            if default.replace(level).is_some() {
                return wrong(format!("{part:?} is a second level for all modules"));
            }
            continue;
        };
        let Some(level) = level(word) else { return wrong(no_level(word)) };
        if let Some(why) = no_module(module) {
            return wrong(why);
        }
        filter = filter.with_target(module, level);
    }
    Ok(filter.with_default(default.unwrap_or(LevelFilter::OFF)))
}

fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

fn halves(part: &str) -> Option<(&str, &str)> {
    part.split_once('=').map(|(module, word)| (module.trim(), word.trim()))
}

/// A warning about a filter that asks for more than this build can log, or names a module that
/// nothing is known of: a filter of an earlier version, or one that serves several programs.
pub(crate) fn warning(text: &str) -> Option<String> {
    let unknown = parts(text).filter_map(halves).map(|(module, _)| module);
    if let Some(module) = unknown.into_iter().find(|module| !is_module(module)) {
        let shown = shortened(module);
        return Some(format!("no module {shown:?} logs here, so its level changes nothing"));
    }
    let words = text.split(',').map(|part| part.rsplit('=').next().unwrap_or(part).trim());
    let most = words.filter_map(level).max()?;
    let can = STATIC_MAX_LEVEL.to_string().to_lowercase();
    (most > STATIC_MAX_LEVEL).then(|| {
        let most = most.to_string().to_lowercase();
        format!("this build logs nothing below {can}, so that {most} is {can}; write {can}")
    })
}

fn level(word: &str) -> Option<LevelFilter> {
    let word = word.to_ascii_lowercase();
    LEVELS.contains(&word.as_str()).then(|| word.parse().ok()).flatten()
}

/// Whether this program has a module, or a library's module, of this name.
fn is_module(name: &str) -> bool {
    let of = |known: &str, name: &str| {
        known.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    OWN.iter().any(|own| of(own, name)) || LIBRARIES.iter().any(|library| of(name, library))
}

fn no_level(word: &str) -> String {
    let shown = shortened(word);
    let lower = word.to_ascii_lowercase();
    // "warning" and "err" are longer or shorter, and meant all the same.
    let begins =
        |level: &&str| !word.is_empty() && (lower.starts_with(level) || level.starts_with(&lower));
    let near = LEVELS.into_iter().find(begins);
    match near.or_else(|| nearest(&lower, LEVELS.into_iter())) {
        Some(near) => format!("{shown:?} is no level; did you mean {near}?"),
        None => format!("{shown:?} is no level"),
    }
}

/// The reason why no module can have this name, or probably another one is meant.
fn no_module(name: &str) -> Option<String> {
    if is_module(name) {
        return None;
    }
    let shown = shortened(name);
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_:-".contains(&b)) {
        return Some(format!(
            "{shown:?} is no module; those of this program begin with shardgate::"
        ));
    }
    // A module above those that log can be meant, too: shardgate::backend.
    let above = OWN.iter().flat_map(|own| own.match_indices("::").map(|(at, _)| &own[..at]));
    let near = nearest(name, above.chain(OWN).chain(LIBRARIES))?;
    Some(format!("no module {shown:?} logs; did you mean {near}?"))
}

fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn a_filter_is_a_level_and_levels_of_modules() {
        for text in [
            "info",
            "WARN",
            "off",
            "warn,shardgate::backend=info",
            "warn, shardgate::backend = info",
            "shardgate=debug",
            "info,rustls=warn,h2::proto=off",
            "info,",
            "shardgate",
            "shardgate=info,shardgate=warn",
            "info,tokio=warn",
            "info,shardgate::routing=debug",
        ] {
            assert_eq!(read(text).map(drop), Ok(()), "{text}");
        }
        let filter = read("warn,shardgate::backend=info").expect("right");
        let enabled = |target, level| filter.would_enable(target, &level);
        assert!(enabled("shardgate::backend::channel::driver", tracing::Level::INFO));
        assert!(!enabled("shardgate::control", tracing::Level::INFO));
        assert!(!enabled("rustls::conn", tracing::Level::ERROR), "clients could fill the log");
    }

    #[test]
    fn a_filter_that_is_none_is_told_with_the_nearest_right_one() {
        for (text, why) in [
            ("inof", "\"inof\" is no level; did you mean info?"),
            ("warning", "\"warning\" is no level; did you mean warn?"),
            ("verbose", "\"verbose\" is no level"),
            ("", "\"\" is no level"),
            ("=", "\"\" is no level"),
            (",", "\"\" is no level"),
            ("3", "\"3\" is no level"),
            ("info,debug", "\"debug\" is a second level for all modules"),
            ("shardgate=verbos", "\"verbos\" is no level"),
            ("shardgat=info", "no module \"shardgat\" logs; did you mean shardgate?"),
            ("shardgate::bakend=info", "did you mean shardgate::backend?"),
            ("=info", "\"\" is no module; those of this program begin with shardgate::"),
            ("shardgate[span]=info", "\"shardgate[span]\" is no module"),
        ] {
            let told = read(text).expect_err(text);
            assert!(told.starts_with(RULE) && told.contains(why), "{text}: {told}");
        }
        assert!(read(&"shardgate=info,".repeat(99)).expect_err("long").contains("1024 bytes"));
    }

    #[test]
    fn a_level_that_this_build_cannot_log_is_warned_of() {
        assert_eq!(warning("info,shardgate=warn"), None);
        let told = warning("info,tokio=warn").expect("it logs nothing");
        assert!(told.contains("no module \"tokio\" logs here"), "{told}");
        assert_eq!(warning("trace").is_some(), STATIC_MAX_LEVEL < LevelFilter::TRACE);
    }

    /// Adds the modules below `dir` whose files log.
    fn find(dir: &Path, module: &str, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(dir).expect("a directory").flatten() {
            let (path, name) = (entry.path(), entry.file_name().into_string().expect("a name"));
            let stem = name.strip_suffix(".rs").unwrap_or(&name);
            let own = match stem {
                "mod" => module.to_owned(),
                _ => format!("{module}::{stem}"),
            };
            if path.is_dir() {
                find(&path, &own, found);
            } else if name.ends_with(".rs") {
                let text = fs::read_to_string(&path).expect("a source");
                let code = text.split("\nmod tests {").next().unwrap_or_default();
                let logs = ["info!(", "warn!(", "error!(", "debug!("];
                if logs.iter().any(|level| code.contains(&format!("tracing::{level}"))) {
                    found.insert(own);
                }
            }
        }
    }

    #[test]
    fn the_modules_are_those_that_log_and_the_libraries_are_in_the_program() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut found = BTreeSet::new();
        find(&root.join("src"), "shardgate", &mut found);
        let known: BTreeSet<String> = OWN.iter().map(|&own| own.to_owned()).collect();
        assert_eq!(known, found);
        let lock = fs::read_to_string(root.join("Cargo.lock")).expect("it is there");
        for library in LIBRARIES {
            let name = library.replace('_', "-");
            assert!(lock.contains(&format!("name = \"{name}\"\n")), "{library}");
        }
    }
}
