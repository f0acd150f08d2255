//! The command that starts a gateway from the same sources: what a message shows for a way out.

use std::path::Path;

use super::load::{Loader, Overrides};
use super::words::{program, shell_word, variable};

/// A value for a key in a command, which no flag or variable of the present one keeps.
pub type Change<'a> = (&'a str, String);

/// The command that starts a gateway like that of `loader`, but for `changes`.
pub fn start(loader: &Loader, changes: &[Change<'_>]) -> String {
    let mut overrides = loader.overrides().clone();
    let mut command = String::new();
    for (key, value) in changes {
        let slot = match *key {
            "listen" => &mut overrides.listen,
            "admin.listen" => &mut overrides.admin,
            "shards.count" => &mut overrides.shards,
            "demo.enabled" => {
                overrides.no_demo = value == "false";
                continue;
            }
            other => {
                command += &format!("{}={} ", variable(other), shell_word(Path::new(value)));
                continue;
            }
        };
        *slot = Some(value.clone());
    }
    command += &program();
    if let Some(dir) = loader.dir().filter(|dir| *dir != Path::new("shards")) {
        command += &format!(" --config {}", shell_word(dir));
    }
    command + &flags(&overrides)
}

fn flags(overrides: &Overrides) -> String {
    let word = |value: &str| format!(" {}", shell_word(Path::new(value)));
    let flag = |(flag, value): (&str, Option<&str>)| {
        format!(" {flag}{}", value.map_or(String::new(), word))
    };
    overrides.shown().map(flag).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_keeps_what_was_given_and_has_the_changes() {
        let given = Overrides {
            listen: Some("127.0.0.1:9000".into()),
            cores: Some("0,1".into()),
            ..Overrides::default()
        };
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("gateway.toml"), "").expect("our directory");
        let loader = Loader::open(Some(dir.path()), &[], &given).expect("it is there");
        let changes = [
            ("listen", "127.0.0.1:9010".into()),
            ("tls.listen", "127.0.0.1:9453".into()),
            ("demo.enabled", "false".into()),
        ];
        let expected = format!(
            "SHARDGATE__TLS__LISTEN=127.0.0.1:9453 {} --config {} --listen 127.0.0.1:9010 \
             --core 0,1 --no-demo",
            program(),
            dir.path().display()
        );
        assert_eq!(start(&loader, &changes), expected);
    }
}
