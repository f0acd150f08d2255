//! The command line: verbs, flags and exit codes. Parses and checks; starting things is `boot`'s.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Config, Loader, Overrides, Problems};

/// Something went wrong while starting or running.
pub const EXIT_START: u8 = 1;
/// Usage or configuration is wrong; EX_USAGE of sysexits.h.
pub const EXIT_USAGE: u8 = 64;

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Run the gateway.
    Serve(Serve),
    /// Echo raw WebSocket messages.
    WsEcho {
        /// Where.
        listen: SocketAddr,
    },
    /// Run only the demo services.
    DemoServices {
        /// Addresses of logic, chat and fight; `None` = those of the configuration.
        listen: Option<[SocketAddr; 3]>,
        /// Where the configuration is.
        config: Option<PathBuf>,
    },
    /// Say whether the configuration is right.
    Check(Serve),
    /// Say which version this is.
    Version,
}

/// Flags that change what is served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serve {
    /// Directory of the configuration.
    pub config: Option<PathBuf>,
    /// What goes over files and environment.
    pub overrides: Overrides,
}

impl Serve {
    /// Where the configuration is read, under these flags and the `SHARDGATE…` variables of `env`.
    pub fn loader(&self, env: &[(String, String)]) -> Result<Loader, Problems> {
        Loader::open(self.config.as_deref(), env, &self.overrides)
    }

    /// The configuration that is there.
    pub fn load(&self, env: &[(String, String)]) -> Result<Config, Problems> {
        config::load(self.config.as_deref(), env, &self.overrides)
    }
}

const AFTER_HELP: &str = "\
EXAMPLES
  shardgate                               the built-in configuration: ws://127.0.0.1:9000/ws
  shardgate --shards 2 --no-demo          two shards, services of your own
  shardgate check --config /etc/shardgate tell everything that is wrong there
  SHARDGATE__QUEUE__ITEMS_MAX=20000 shardgate
                                          any key, by its sections and name

Flags override the environment, that overrides the files gateway.toml, default.toml and
N.toml (for shard N) of the configuration directory. Every key is explained in those files.

EXIT CODES
  0 stopped as asked   1 could not start   64 configuration or usage is wrong";

#[derive(Parser)]
#[command(
    name = "shardgate",
    version,
    about = "A WebSocket gateway: one pinned thread a core, messages batched to gRPC services",
    after_help = AFTER_HELP,
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(subcommand)]
    verb: Option<VerbArgs>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Subcommand)]
enum VerbArgs {
    /// Run the gateway (what happens without a verb)
    Serve(ServeArgs),
    /// Echo raw WebSocket messages through the gateway's codec, for conformance suites
    WsEcho {
        /// Where to listen: IP address and port
        #[arg(long, value_name = "ADDR")]
        listen: SocketAddr,
    },
    /// Run only the demo services logic, chat and fight
    DemoServices {
        /// Where they listen, in that order [default: demo.addresses of the configuration]
        #[arg(long, value_name = "ADDR,ADDR,ADDR", value_delimiter = ',', num_args = 1)]
        listen: Vec<SocketAddr>,
        /// Directory of the configuration
        #[arg(long, value_name = "DIR")]
        config: Option<PathBuf>,
    },
    /// Tell every problem of the configuration, or what it comes to; starts nothing
    Check(ServeArgs),
    /// Print the version
    Version,
}

#[derive(Args)]
struct ServeArgs {
    /// Directory of the configuration
    /// [default: $SHARDGATE_CONFIG, else ./shards if it is there, else built in]
    #[arg(long, value_name = "DIR", verbatim_doc_comment)]
    config: Option<PathBuf>,
    /// Where clients connect: IP address and port
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Where health, statistics and administration are served
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
    /// Number of shards, or auto: one for each allowed core, less one from 4 cores up
    #[arg(long, value_name = "N")]
    shards: Option<String>,
    /// Cores of shard 0, 1, ..., with commas between; also sets the number of shards
    #[arg(long, value_name = "LIST")]
    core: Option<String>,
    /// Do not run the demo services in this process
    #[arg(long)]
    no_demo: bool,
    /// What is logged: error, warn, info, or "warn,shardgate::backend=info"
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

impl From<ServeArgs> for Serve {
    fn from(args: ServeArgs) -> Self {
        let ServeArgs { config, listen, admin, shards, core, no_demo, log } = args;
        Self { config, overrides: Overrides { listen, admin, shards, cores: core, no_demo, log } }
    }
}

/// The verb of a command line, the program's name first. `Err` is what to do instead: help or
/// usage were printed, and this is the code to exit with.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Verb, ExitCode> {
    try_parse(args).map_err(|e| {
        // Without a terminal there is nobody to tell.
        let _ = e.print();
        if e.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS }
    })
}

fn try_parse(args: impl IntoIterator<Item = OsString>) -> Result<Verb, clap::Error> {
    let cli = Cli::try_parse_from(args)?;
    Ok(match cli.verb {
        None => Verb::Serve(cli.serve.into()),
        Some(VerbArgs::Serve(args)) => Verb::Serve(args.into()),
        Some(VerbArgs::Check(args)) => Verb::Check(args.into()),
        Some(VerbArgs::Version) => Verb::Version,
        Some(VerbArgs::WsEcho { listen }) => Verb::WsEcho { listen },
        Some(VerbArgs::DemoServices { listen, config }) => {
            let listen = if listen.is_empty() { None } else { Some(three(listen)?) };
            Verb::DemoServices { listen, config }
        }
    })
}

fn three(listen: Vec<SocketAddr>) -> Result<[SocketAddr; 3], clap::Error> {
    <[SocketAddr; 3]>::try_from(listen).map_err(|list| {
        let what = format!(
            "--listen names {} addresses; it takes three, for logic, chat and fight\n",
            list.len()
        );
        clap::Error::raw(clap::error::ErrorKind::WrongNumberOfValues, what)
    })
}

/// The `SHARDGATE…` variables of this process. Ones that are no Unicode are shown with a
/// replacement character, which the check of their value then refuses.
pub fn environment() -> Vec<(String, String)> {
    let text = |s: OsString| s.to_string_lossy().into_owned();
    let all = std::env::vars_os().map(|(name, value)| (text(name), text(value)));
    all.filter(|(name, _)| name.starts_with("SHARDGATE")).collect()
}

/// What `shardgate check` prints, and its exit code.
pub fn check(loaded: Result<Config, Problems>) -> (String, u8) {
    let config = match loaded {
        Ok(config) => config,
        Err(problems) => {
            let count = problems.0.len();
            let s = if count == 1 { "" } else { "s" };
            return (format!("{problems}\n{count} problem{s}"), EXIT_USAGE);
        }
    };
    let mut out = String::new();
    for warning in &config.warnings {
        out += &format!("warning: {warning}\n");
    }
    let (gateway, snapshot) = (&config.gateway, &config.snapshot);
    let shards = gateway.shards.map_or("auto".into(), |n| n.to_string());
    out += &format!(
        "ok: listen {}{}, admin {}, shards {shards}, demo services {}\n",
        gateway.listen,
        gateway.path,
        gateway.admin.listen,
        if gateway.demo.enabled { "on" } else { "off" },
    );
    for route in &snapshot.routes {
        let service = usize::from(route.service.0);
        let name = snapshot.services.get(service).map_or("", |s| &*s.name);
        let own = snapshot.instances.iter().filter(|i| i.service == route.service);
        let own: Vec<_> = own.map(|i| format!("{} {}", i.name, i.address)).collect();
        let (first, last, priority) = (route.first, route.last, route.priority.name());
        out += &format!("  {first}-{last} -> {name} ({priority}): {}\n", own.join(", "));
    }
    (out.trim_end().to_owned(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load::{Files, from_files};

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
        assert_eq!(run("ws-echo --listen 127.0.0.1:9001").expect("right"), Verb::WsEcho { listen });
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
    fn check_tells_the_problems_or_the_routes() {
        let load = |flags: &Overrides| from_files(Files::embedded(), &[], flags);
        let (text, code) = check(load(&Overrides::default()));
        assert_eq!(code, 0);
        assert!(text.starts_with("ok: listen 127.0.0.1:9000/ws, admin 127.0.0.1:8000"), "{text}");
        assert!(text.contains("3000-3999 -> fight (high): fight-1 127.0.0.1:50003"), "{text}");
        let (text, code) =
            check(load(&Overrides { shards: Some("0".into()), ..Overrides::default() }));
        assert_eq!(code, EXIT_USAGE);
        assert!(text.starts_with("flag --shards: shards.count = 0: must be"), "{text}");
        assert!(text.ends_with("\n1 problem"), "{text}");
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
