//! Faults of a unit: what will not work under its restrictions, each with the way out.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::config::{Config, key_of_variable, shell_word};

/// Directories that the unit's process does not see, by the restriction that hides them.
const HIDDEN: [(&str, &str); 5] = [
    ("/home", "ProtectHome=yes"),
    ("/root", "ProtectHome=yes"),
    ("/run/user", "ProtectHome=yes"),
    ("/tmp", "PrivateTmp=yes"),
    ("/var/tmp", "PrivateTmp=yes"),
];

/// The user that a unit runs as, by the numbers that files belong to.
#[derive(Clone, Copy, Debug)]
struct User {
    uid: u32,
    gid: u32,
}

/// Every fault, one a line. `program` and `dir` are absolute.
pub(super) fn faults(
    config: &Config,
    program: &Path,
    dir: Option<&Path>,
    user: &str,
    env: &[(String, String)],
) -> Vec<String> {
    let mut faults = Vec::new();
    let word = shell_word(program);
    if let Some(why) = hidden(program) {
        faults.push(format!(
            "the program {word} is not seen by the unit ({why}): install -m 755 {word} \
             /usr/local/bin/shardgate, and make the unit with that one"
        ));
    }
    if let Some(why) = dir.and_then(hidden) {
        let word = shell_word(dir.unwrap_or(program));
        faults.push(format!(
            "the configuration {word} is not seen by the unit ({why}): cp -r {word} \
             /etc/shardgate, and make the unit with --config /etc/shardgate"
        ));
    }
    let files = files(config);
    for (key, path) in &files {
        if path.is_relative() {
            let path = path.display();
            faults.push(format!(
                "{key} = {path} is relative, and the unit runs in /: write the whole path"
            ));
        } else if let Some(why) = hidden(path) {
            let path = path.display();
            faults.push(format!("{key} = {path} is not seen by the unit ({why}): move it"));
        }
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    match find(&passwd, user) {
        None => faults.push(format!(
            "there is no user {user} in /etc/passwd: useradd --system {user} (a directory service \
             may know it)"
        )),
        Some(found) => {
            let own = dir.map(|dir| ("the configuration", dir.join("gateway.toml")));
            let program = ("the program", program.to_owned());
            let files = files.iter().map(|(key, path)| (key.as_str(), path.clone()));
            for (what, path) in own.into_iter().chain([program]).chain(files) {
                faults.extend(unreadable(what, &path, user, found));
            }
        }
    }
    let sets_key = |name: &&str| key_of_variable(name).is_some();
    let names: Vec<&str> = env.iter().map(|(name, _)| name.as_str()).filter(sets_key).collect();
    if !names.is_empty() {
        faults.push(format!(
            "the unit has no variables of this shell: add Environment= or EnvironmentFile= for {}, \
             or write the keys into the files",
            names.join(", ")
        ));
    }
    faults
}

/// The restriction that hides `path`.
fn hidden(path: &Path) -> Option<&'static str> {
    HIDDEN.iter().find(|(dir, _)| path.starts_with(dir)).map(|(_, why)| *why)
}

/// Files that the configuration names, by their keys.
fn files(config: &Config) -> Vec<(String, PathBuf)> {
    let is_path = |key: &str| {
        let last = key.rsplit('.').next().unwrap_or(key);
        last.ends_with("_file") || ["tls_cert", "tls_key"].contains(&last)
    };
    let named = config.provenance.iter().filter(|(key, ..)| is_path(key));
    let path = |value: &str| PathBuf::from(value.trim_matches('"'));
    let all = named.map(|(key, value, _)| (key.clone(), path(value)));
    all.filter(|(_, path)| !path.as_os_str().is_empty()).collect()
}

/// The user of this name in the text of /etc/passwd.
fn find(passwd: &str, name: &str) -> Option<User> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut numbers = line.split(':').skip(2).map(str::parse);
    Some(User { uid: numbers.next()?.ok()?, gid: numbers.next()?.ok()? })
}

/// The fault that the user may not read `path`, or not enter a directory above it, by their modes.
/// (Access lists and other groups of the user are not looked at.)
fn unreadable(what: &str, path: &Path, user: &str, of: User) -> Option<String> {
    let may = |path: &Path, bit: u32| {
        // What is not there has a problem of its own.
        let Ok(found) = fs::metadata(path) else { return true };
        let shift = match (found.uid() == of.uid, found.gid() == of.gid) {
            (true, _) => 6,
            (false, true) => 3,
            (false, false) => 0,
        };
        of.uid == 0 || found.mode() >> shift & bit != 0
    };
    const ENTER: u32 = 0o1;
    const READ: u32 = 0o4;
    if let Some(dir) = path.ancestors().skip(1).find(|dir| !may(dir, ENTER)) {
        let (path, dir) = (path.display(), shell_word(dir));
        return Some(format!("{what}, {path}, is not reached by {user}: chmod o+x {dir}"));
    }
    (!may(path, READ)).then(|| {
        let word = shell_word(path);
        format!("{what}, {word}, is not read by {user}: chgrp {user} {word} && chmod g+r {word}")
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::Overrides;
    use crate::config::load::{Files, from_files};

    fn told(gateway: &str, program: &str, dir: Option<&Path>, user: &str) -> String {
        let mut files = Files::embedded();
        files.gateway.text = gateway.into();
        let config = from_files(files, &[], &Overrides::default()).expect("right");
        let env = [("SHARDGATE__LISTEN".into(), "127.0.0.1:1".into())];
        faults(&config, Path::new(program), dir, user, &env).join("\n")
    }

    #[test]
    fn what_the_unit_does_not_see_is_told_with_the_way_out() {
        let gateway = "admin.token_file = \"token\"\nauth.jwks_file = \"/home/me/keys\"\n";
        let dir = Some(Path::new("/root/conf"));
        let told = told(gateway, "/home/me/target/shardgate", dir, "no-such-user");
        for part in [
            "the program /home/me/target/shardgate is not seen by the unit (ProtectHome=yes): ",
            "the configuration /root/conf is not seen by the unit (ProtectHome=yes): cp -r",
            "admin.token_file = token is relative, and the unit runs in /",
            "auth.jwks_file = /home/me/keys is not seen by the unit (ProtectHome=yes)",
            "there is no user no-such-user in /etc/passwd: useradd --system no-such-user",
            "the unit has no variables of this shell: add Environment=",
        ] {
            assert!(told.contains(part), "{part} in\n{told}");
        }
    }

    #[test]
    fn files_that_the_units_user_cannot_read_are_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("gateway.toml");
        fs::write(&file, "").expect("ours");
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
        };
        let other = User { uid: 54_321, gid: 54_321 };
        mode(dir.path(), 0o755);
        mode(&file, 0o640);
        let told = unreadable("it", &file, "gate", other).expect("a fault");
        assert!(told.contains("is not read by gate: chgrp gate "), "{told}");
        mode(&file, 0o644);
        assert_eq!(unreadable("it", &file, "gate", other), None);
        mode(dir.path(), 0o700);
        let told = unreadable("it", &file, "gate", other).expect("a fault");
        assert!(told.contains("is not reached by gate: chmod o+x "), "{told}");
        let owner = User { uid: fs::metadata(&file).expect("ours").uid(), gid: 0 };
        assert_eq!(unreadable("it", &file, "gate", owner), None);
        assert_eq!(
            find("root:x:0:0::/:\ngate:x:7:8::/:\n", "gate").map(|u| (u.uid, u.gid)),
            Some((7, 8))
        );
    }
}
