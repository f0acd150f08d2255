//! Sources of the admin token, and files that are not trusted.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn of_file(path: &Path) -> AdminSettings {
    AdminSettings { token_file: Some(path.to_owned()), ..AdminSettings::default() }
}

fn of_server(settings: &AdminSettings) -> Result<Token, String> {
    for_server(settings, 1).map(|(token, made)| {
        assert!(made.is_none(), "a configured file is not the process's own");
        token
    })
}

#[test]
fn a_file_that_the_process_made_goes_with_it_unless_another_took_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin-1.token");
    let made = |token: Token| MadeFile { path: path.clone(), token };
    let first = made(replace(&path).unwrap());
    drop(first);
    assert!(!path.exists());
    let first = made(replace(&path).unwrap());
    let second = made(replace(&path).unwrap());
    drop(first);
    assert_eq!(read(&path).unwrap(), second.token, "that of the next one stays");
    drop(second);
    assert!(!path.exists());
}

#[test]
fn a_configured_token_is_taken_and_shown_nowhere() {
    let token = Some("0123456789abcdef".into());
    let settings = AdminSettings { token, ..AdminSettings::default() };
    let token = of_server(&settings).unwrap();
    assert_eq!(token, for_client(&settings, 2).unwrap());
    assert!(token.is(b"0123456789abcdef"));
    let long = [b'x'; 300];
    for other in [&b""[..], b"0123456789abcde", b"0123456789abcdef\0", b"0123456789abcdeF", &long] {
        assert!(!token.is(other));
    }
    assert_eq!(format!("{token:?}"), "Token(<redacted>)");
    assert!(!format!("{settings:?}").contains("0123456789abcdef"));
}

#[test]
fn a_token_file_is_made_once_and_then_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let made = of_server(&of_file(&path)).unwrap();
    assert_eq!((made.expose().len(), mode(&path)), (64, 0o600));
    assert_eq!(of_server(&of_file(&path)).unwrap(), made);
    assert_eq!(for_client(&of_file(&path), 1).unwrap(), made);
    let other = dir.path().join("other");
    assert_ne!(of_server(&of_file(&other)).unwrap(), made);
    let absent = for_client(&of_file(&dir.path().join("no")), 1).unwrap_err();
    assert!(absent.contains("cannot read it") && absent.contains("admin.token_file"), "{absent}");
}

#[test]
fn a_token_that_others_can_read_or_that_is_none_is_refused_without_being_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    for (text, bits, expected) in [
        ("0123456789abcdef\n", 0o640, "mode 0640"),
        ("0123456789abcdef\n", 0o700, "mode 0700"),
        ("01234\n", 0o600, "16 to 256"),
        ("0123456789abcdef\n0123456789abcdef\n", 0o600, "16 to 256"),
        (&"x".repeat(257), 0o600, "16 to 256"),
    ] {
        fs::write(&path, text).unwrap();
        set_mode(&path, bits);
        let error = of_server(&of_file(&path)).unwrap_err();
        assert!(error.contains(expected) && !error.contains("01234"), "{error}");
    }
    set_mode(&path, 0o400);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(of_server(&of_file(&path)).unwrap_err().contains("not a file"));
}

#[test]
fn the_directory_is_the_first_that_the_environment_names() {
    let env = |vars: &'static [(&str, &str)]| {
        TokenDir::of(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into()))
    };
    let home = |dir: &str, given| TokenDir { dir: dir.into(), given };
    assert_eq!(env(&[("XDG_RUNTIME_DIR", "/a")]), home("/a/shardgate", false));
    let both = env(&[("RUNTIME_DIRECTORY", "/b:/c"), ("XDG_RUNTIME_DIR", "/a")]);
    assert_eq!(both, home("/b", true));
    assert_eq!(
        env(&[("XDG_RUNTIME_DIR", "")]),
        home(&format!("/tmp/shardgate-{}", own_uid()), false)
    );
    assert_eq!(both.file(8000), Path::new("/b/admin-8000.token"));
}

#[test]
fn a_new_run_replaces_the_token_of_a_former_one() {
    let dir = tempfile::tempdir().unwrap();
    let home = TokenDir { dir: dir.path().join("shardgate"), given: false };
    home.make().unwrap();
    home.make().unwrap();
    assert_eq!(mode(&home.dir), 0o700);
    let path = home.file(1);
    let elsewhere = dir.path().join("elsewhere");
    fs::write(&elsewhere, "precious").unwrap();
    symlink(&elsewhere, &path).unwrap();
    let first = replace(&path).unwrap();
    let second = replace(&path).unwrap();
    assert_ne!(first, second);
    assert_eq!((read(&path).unwrap(), mode(&path)), (second, 0o600));
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "precious", "a link is not followed");
    assert_eq!(fs::read_dir(&home.dir).unwrap().count(), 1, "nothing is left behind");
}

#[test]
fn a_directory_that_others_have_a_hand_in_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().join("real");
    let home = |name: &str, given| TokenDir { dir: dir.path().join(name), given };
    fs::create_dir(&real).unwrap();
    set_mode(&real, 0o755);
    symlink(&real, dir.path().join("link")).unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    assert!(home("link", false).make().unwrap_err().contains("not a directory"));
    assert!(home("file", false).make().unwrap_err().contains("not a directory"));
    assert!(home("real", false).make().unwrap_err().contains("mode 0755"));
    home("real", true).make().unwrap();
    set_mode(&real, 0o777);
    assert!(home("real", true).make().unwrap_err().contains("mode 0777"));
    assert!(home("none", true).make().unwrap_err().contains("cannot look"));
}
