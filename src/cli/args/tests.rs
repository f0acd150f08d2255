//! Tests of the command line.

use super::*;

fn run(line: &str) -> Result<Verb, clap::Error> {
    let words = std::iter::once("shardgate").chain(line.split_whitespace());
    try_parse(words.map(OsString::from))
}

#[test]
fn no_verb_serves() {
    assert_eq!(run("").expect("right"), Verb::Serve(Serve::default()));
    assert_eq!(run("--no-demo").expect("right"), run("serve --no-demo").expect("right"));
}

#[test]
fn flags_reach_the_overrides() {
    let line = "--config /c --listen 1.2.3.4:5 --admin 1.2.3.4:6 --shards 2 --core 0,1 \
                --no-demo --log warn";
    let overrides = Overrides {
        listen: Some("1.2.3.4:5".into()),
        admin: Some("1.2.3.4:6".into()),
        shards: Some("2".into()),
        cores: Some("0,1".into()),
        no_demo: true,
        log: Some("warn".into()),
    };
    let serve = Serve { config: Some("/c".into()), overrides };
    assert_eq!(run(line).expect("right"), Verb::Serve(serve.clone()));
    assert_eq!(run(&format!("check {line}")).expect("right"), Verb::Check(serve));
}

#[test]
fn other_verbs_have_their_own_flags() {
    let listen = "127.0.0.1:9001".parse().expect("an address");
    let echo = Verb::WsEcho { listen, tls: None };
    assert_eq!(run("ws-echo --listen 127.0.0.1:9001").expect("right"), echo);
    let echo = Verb::WsEcho { listen, tls: Some(("a".into(), "b".into())) };
    let line = "ws-echo --listen 127.0.0.1:9001 --tls-cert a";
    assert_eq!(run(&format!("{line} --tls-key b")).expect("right"), echo);
    assert!(run(line).is_err(), "one goes with the other");
    assert!(run("ws-echo").is_err());
    assert_eq!(run("version").expect("right"), Verb::Version);
    let demo = run("demo-services --listen 127.0.0.1:1,127.0.0.1:2,127.0.0.1:3");
    let Ok(Verb::DemoServices { listen: Some(listen), config: None }) = demo else {
        panic!("{demo:?}");
    };
    assert_eq!(listen.map(|a| a.port()), [1, 2, 3]);
    let none = Verb::DemoServices { listen: None, config: None };
    assert_eq!(run("demo-services").expect("right"), none);
    assert!(run("demo-services --listen 127.0.0.1:1").is_err());
}

#[test]
fn wrong_usage_is_an_error_and_help_is_not() {
    for line in ["--prot 1", "sreve", "--listen", "version --no-demo"] {
        assert!(run(line).expect_err("wrong").use_stderr(), "{line}");
    }
    let help = run("--help").expect_err("printed instead");
    assert!(!help.use_stderr());
    assert!(help.to_string().contains("EXIT CODES"));
    assert!(!run("--version").expect_err("printed instead").use_stderr());
}

#[test]
fn wrong_usage_is_one_line_that_ends_in_the_help_of_the_verb() {
    for (line, said, help) in [
        ("sreve", "unrecognized verb 'sreve'; a similar verb exists: 'serve'", ""),
        ("--prot 1", "unexpected argument '--prot' found", ""),
        ("ws-echo --listen foo", "an IP address and a port, e.g. 127.0.0.1:9001", " ws-echo"),
        ("drain --instanc a", "a similar argument exists: '--instance'", " drain"),
        ("gen config", "not provided: <DIR>", " gen config"),
        ("config --format x", "[possible values: table, toml, json]", " config"),
    ] {
        let words = std::iter::once("shardgate").chain(line.split_whitespace());
        let args: Vec<OsString> = words.map(OsString::from).collect();
        let told = one_line(&run(line).expect_err("wrong"), &args);
        assert!(told.starts_with("error: ") && !told.contains('\n'), "{told}");
        assert!(told.contains(said), "{told}");
        assert!(told.ends_with(&format!("; help: {}{help} --help", program())), "{told}");
    }
}

#[test]
fn files_are_written_into_a_directory_that_is_named() {
    let config = Verb::GenFiles { what: BuiltIn::Config, dir: "a".into() };
    assert_eq!(run("gen config a").expect("right"), config);
    let proto = Verb::GenFiles { what: BuiltIn::Proto, dir: "a".into() };
    assert_eq!(run("gen proto a").expect("right"), proto);
    assert!(run("gen config").is_err() && run("gen proto a b").is_err());
}

/// Checks the help of a verb and of the verbs below it; how many options have a heading.
fn check_help(command: &mut clap::Command) -> usize {
    let serve = Cli::command();
    let is_shared = |arg: &clap::Arg| {
        let same = |other: &&clap::Arg| {
            other.get_id() == arg.get_id() && other.get_help() == arg.get_help()
        };
        arg.get_id() != "help"
            && arg.get_id() != "version"
            && serve.get_arguments().any(|o| same(&o))
    };
    let mut shared = 0;
    for arg in command.get_arguments() {
        let wanted = is_shared(arg).then_some(SHARED);
        assert_eq!(arg.get_help_heading(), wanted, "{} {arg}", command.get_name());
        shared += usize::from(wanted.is_some());
    }
    let help = command.render_help().to_string();
    if shared > 0 {
        let at = |heading: &str| help.find(&format!("\n{heading}:\n")).expect("a heading");
        assert!(at("Options") < at(SHARED), "{help}");
        assert!(at(SHARED) < help.find("  --config").or(help.find("--config <")).expect("shared"));
    }
    shared + command.get_subcommands_mut().map(check_help).sum::<usize>()
}

#[test]
fn options_of_the_verb_itself_come_first() {
    let mut command = Cli::command();
    command.build();
    assert!(check_help(&mut command) > 40);
    let help = |line: &str| run(line).expect_err("printed instead").to_string();
    let drain = help("drain --help");
    assert!(drain.contains("--admin") && !drain.contains("--shards"), "{drain}");
    assert!(help("check --help").contains("--shards"));
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}
