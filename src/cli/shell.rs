//! `shardgate gen completions` and `shardgate gen man`: the verbs and flags, for a shell and for
//! `man`.

use std::fs;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;

use super::{EXIT_START, Output};
use crate::config::shell_word;

/// Name under which the program is installed.
const NAME: &str = "shardgate";

/// The script by which `shell` completes verbs and flags.
pub(super) fn completions(mut command: Command, shell: Shell) -> Output {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, NAME, &mut script);
    Output::fine(String::from_utf8_lossy(&script).into_owned())
}

/// Writes the manual into `dir`, a page for each verb: `shardgate.1`, `shardgate-check.1`.
pub(super) fn manual(command: Command, dir: &Path) -> Output {
    let written = fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(command, dir));
    let word = shell_word(dir);
    match written {
        Ok(()) => Output::fine(format!(
            "wrote the pages of shardgate and its verbs into {word}\nnext: man {word}/{NAME}.1"
        )),
        Err(error) => {
            let why = format!("{}: {error}; name another directory", dir.display());
            Output::wrong(why, EXIT_START)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;
    use crate::cli::args::command;

    /// Every verb by its words, those below others too.
    fn verbs(command: &Command, of: &str) -> Vec<String> {
        let below = command.get_subcommands().filter(|verb| verb.get_name() != "help");
        let one = |verb: &Command| {
            let name = format!("{of} {}", verb.get_name()).trim().to_owned();
            let mut all = verbs(verb, &name);
            all.push(name);
            all
        };
        below.flat_map(one).collect()
    }

    #[test]
    fn every_shell_completes_every_verb() {
        let all = verbs(&command(), "");
        assert!(all.len() > 15 && all.contains(&"gen token".to_owned()), "{all:?}");
        for shell in Shell::value_variants() {
            let Output { text, code, .. } = completions(command(), *shell);
            assert_eq!(code, 0);
            for verb in &all {
                let last = verb.rsplit(' ').next().unwrap_or(verb);
                assert!(text.contains(last), "{shell}: {verb}");
            }
            assert!(text.contains("in-force"), "{shell}: flags are completed, too");
        }
    }

    #[test]
    fn the_manual_has_a_page_for_every_verb() {
        let dir = tempfile::tempdir().expect("a directory");
        let Output { text, code, .. } = manual(command(), &dir.path().join("man1"));
        assert_eq!(code, 0, "{text}");
        for verb in verbs(&command(), "") {
            let page = format!("man1/shardgate-{}.1", verb.replace(' ', "-"));
            let page = fs::read_to_string(dir.path().join(&page))
                .unwrap_or_else(|e| panic!("{page}: {e}"));
            assert!(page.contains(".SH NAME"), "{page}");
        }
        let main = fs::read_to_string(dir.path().join("man1/shardgate.1")).expect("written");
        assert!(main.contains("EXIT CODES") && main.contains("demo\\-services"), "{main}");
        let file = tempfile::NamedTempFile::new().expect("a file");
        let Output { text, code, .. } = manual(command(), file.path());
        assert!(code == EXIT_START && text.contains("name another directory"), "{text}");
    }
}
