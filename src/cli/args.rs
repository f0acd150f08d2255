//! Parser of the command line: verbs and flags, and the help that teaches them.

use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};

use super::settings::Format;
use super::{
    BenchArgs, BuiltIn, EXIT_USAGE, ExplainArgs, Form, GuideArgs, NewToken, PlotArgs, Serve, Verb,
};
use crate::config::{Overrides, program};
use crate::trace::MS_MAX;

const AFTER_HELP: &str = "\
VERBS BY TASK
  run it            serve (what happens without a verb), demo-services, ws-echo
  before it runs    gen config, check, doctor, config, routes, gen systemd
  for the shell     gen completions, gen man
  for clients       gen token, check token
  for programs      gen proto
  to read           guide
  while it runs     explain, trace, reload, drain, config --in-force, routes --in-force
  how fast it is    bench, histogram plot

EXAMPLES
  shardgate                               the built-in configuration: ws://127.0.0.1:9000/ws
  shardgate --shards 2 --no-demo          two shards, services of your own
  shardgate check --config /etc/shardgate tell everything that is wrong there
  shardgate explain --msg-id 1001 --user alice
                                          who gets this message, and why
  shardgate bench                         how fast is the one that runs
  SHARDGATE__QUEUE__ITEMS_MAX=20000 shardgate
                                          any key, by its sections and name

CONFIGURATION
  The directory is --config, else $SHARDGATE_CONFIG, else ./shards if it has a gateway.toml, else
  built in. Flags override the environment, that overrides the files gateway.toml, default.toml and
  N.toml (for shard N). Every key is explained in those files; `shardgate config` shows all.

EXIT CODES
  0 done, or stopped as asked   1 could not start, do it, or reach a gateway; doctor found a FAIL
  64 configuration or usage is wrong

`shardgate help VERB` explains one verb.";

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
    #[command(after_help = "EXAMPLE\n  shardgate serve --config /etc/shardgate --core 2,3")]
    Serve(ServeArgs),
    /// Tell every problem of the configuration, or what it comes to; starts nothing
    #[command(
        after_help = "EXAMPLE\n  shardgate check --config /etc/shardgate\n\n\
        Exits with 64 and one line a problem (file:line: key = value: rule), or prints the routes\n\
        and what the caps come to in memory.",
        args_conflicts_with_subcommands = true
    )]
    Check {
        #[command(subcommand)]
        what: Option<CheckArgs>,
        #[command(flatten)]
        serve: ServeArgs,
    },
    /// Show every key, its value and where that came from
    #[command(after_help = "EXAMPLES\n  shardgate config --config /etc/shardgate\n  \
        shardgate config --in-force --format json\n\nSecrets are not shown.")]
    Config {
        #[command(flatten)]
        serve: ServeArgs,
        /// Of the gateway that runs at admin.listen, not of the files
        #[arg(long)]
        in_force: bool,
        /// Form of the output
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Show which ids go to which service and instances
    #[command(after_help = "EXAMPLE\n  shardgate routes --in-force")]
    Routes {
        #[command(flatten)]
        admin: AdminArgs,
        /// Routes and instances of the gateway that runs at admin.listen
        #[arg(long)]
        in_force: bool,
        #[command(flatten)]
        form: FormArgs,
    },
    /// Explain who gets a message: range, service, hash, instance; or where a group lives
    #[command(after_help = "EXAMPLES\n  shardgate explain --msg-id 1001 --user alice\n  \
        shardgate explain --group room:7\n\n\
        A gateway that answers at admin.listen is asked; else the configuration alone explains,\n\
        and the first line says which it was. Exits with 1 if nobody gets the message, or if no\n\
        rule has the group's name.")]
    Explain {
        #[command(flatten)]
        admin: AdminArgs,
        #[command(flatten)]
        args: ExplainArgs,
        #[command(flatten)]
        form: FormArgs,
    },
    /// Look at this machine: what keeps the gateway from starting or makes it slow
    #[command(after_help = "EXAMPLE\n  shardgate doctor --config /etc/shardgate\n\n\
        A line each: OK, NOTE, WARN or FAIL, what was seen, why it matters, and the command that\n\
        changes it. Changes nothing. Exits with 1 if there is a FAIL.")]
    Doctor(ServeArgs),
    /// Drain the gateway that runs, or one instance of a service
    #[command(after_help = "EXAMPLES\n  shardgate drain\n  shardgate drain --instance logic-2\n  \
        shardgate drain --instance logic-2 --undo")]
    Drain {
        #[command(flatten)]
        admin: AdminArgs,
        /// Give this instance nothing new, and let it finish what it has
        #[arg(long, value_name = "ID")]
        instance: Option<String>,
        /// Give it its keys again
        #[arg(long, requires = "instance")]
        undo: bool,
        #[command(flatten)]
        form: FormArgs,
    },
    /// Have the gateway that runs read its files again
    #[command(after_help = "EXAMPLE\n  shardgate reload\n\n\
        Prints what changed: + is new, - is gone, ~ has another value. Refused (64) as a whole if\n\
        anything is wrong or a boot key.")]
    Reload {
        #[command(flatten)]
        admin: AdminArgs,
        #[command(flatten)]
        form: FormArgs,
    },
    /// Record what the turns of a shard do, for ui.perfetto.dev
    #[command(after_help = "EXAMPLE\n  shardgate trace --shard 0 --ms 1000 trace.json")]
    Trace {
        #[command(flatten)]
        admin: AdminArgs,
        /// Number of the shard
        #[arg(long, value_name = "N", default_value_t = 0)]
        shard: u16,
        /// Length in milliseconds, at most 5000
        #[arg(long, value_name = "N", default_value_t = 1_000)]
        #[arg(value_parser = clap::value_parser!(u64).range(1..=MS_MAX))]
        ms: u64,
        /// File that gets the trace
        #[arg(value_name = "FILE", default_value = "trace.json")]
        file: PathBuf,
    },
    /// Put load on a gateway and measure its answers
    #[command(after_help = "EXAMPLES\n  shardgate bench\n  \
        shardgate bench --connections 500 --depth 4 --save before.json\n  \
        shardgate bench --rate 5000 --arrivals poisson --vs before.json --svg both.svg\n  \
        shardgate bench wss://game.example.org/ws --tokens tokens --mix 1001:9 --mix 2001:1:400\n\n\
        Exits with 1 if there was no connection, or no message was answered with success.\n\
        More: shardgate guide benchmark")]
    Bench {
        #[command(flatten)]
        args: Box<BenchArgs>,
        #[command(flatten)]
        form: FormArgs,
        #[command(flatten)]
        dir: DirArgs,
    },
    /// Look into files of histograms
    #[command(subcommand)]
    Histogram(HistogramArgs),
    /// Show the guide of this version: its pages, one page, or a search
    #[command(after_help = "EXAMPLES\n  shardgate guide\n  shardgate guide tls\n  \
        shardgate guide --search 'slow client'")]
    Guide(GuideArgs),
    /// Write files for users and other programs
    #[command(subcommand)]
    Gen(GenArgs),
    /// Echo raw WebSocket messages through the gateway's codec, for conformance suites
    #[command(after_help = "EXAMPLE\n  shardgate ws-echo --listen 127.0.0.1:9001")]
    WsEcho {
        /// Address to listen on: IP address and port
        #[arg(long, value_name = "ADDR", value_parser = address)]
        listen: SocketAddr,
        /// Certificate chain, PEM: speak TLS
        #[arg(long, value_name = "FILE", requires = "tls_key")]
        tls_cert: Option<PathBuf>,
        /// Private key of the certificate, PEM
        #[arg(long, value_name = "FILE", requires = "tls_cert")]
        tls_key: Option<PathBuf>,
    },
    /// Run only the demo services logic, chat and fight
    #[command(after_help = "EXAMPLE\n  shardgate demo-services")]
    DemoServices {
        /// Addresses to listen on, in that order [default: demo.addresses of the configuration]
        #[arg(long, value_name = "ADDR,ADDR,ADDR", value_delimiter = ',', num_args = 1)]
        #[arg(value_parser = address)]
        listen: Vec<SocketAddr>,
        #[command(flatten)]
        dir: DirArgs,
    },
    /// Print the version, and what it was built for
    Version,
}

#[derive(Subcommand)]
enum CheckArgs {
    /// Tell what a token says and why it is accepted or refused; it is read from stdin
    #[command(after_help = "EXAMPLE\n  shardgate check token --config /etc/shardgate < token\n\n\
        Exits with 0 if the gateway accepts it, with 1 if not.")]
    Token(DirArgs),
}

#[derive(Subcommand)]
enum HistogramArgs {
    /// Draw the percentiles of histograms as SVG: a curve for each stage, or each file
    #[command(after_help = "EXAMPLE\n  curl -s http://127.0.0.1:8000/histograms > now.hlog\n  \
        shardgate histogram plot now.hlog --stage whole --svg now.svg")]
    Plot(PlotArgs),
}

#[derive(Subcommand)]
enum GenArgs {
    /// A client's token, signed with an [[auth_key]]: for tests and development
    #[command(
        after_help = "EXAMPLES\n  shardgate gen token --config /etc/shardgate --user alice\n  \
        shardgate gen token --user alice --key k1 --private-key k1.pem --lifetime-s 60"
    )]
    Token {
        #[command(flatten)]
        dir: DirArgs,
        #[command(flatten)]
        new: NewToken,
    },
    /// Write the built-in configuration, with its comments, into a directory
    #[command(after_help = "EXAMPLE\n  shardgate gen config shards\n\n\
        Writes gateway.toml and default.toml. A file that exists is not overwritten.")]
    Config {
        /// Directory for the files; it is made if it is missing
        dir: PathBuf,
    },
    /// Write the .proto files of clients, services, pushes and the registry into a directory
    #[command(after_help = "EXAMPLE\n  shardgate gen proto proto\n\n\
        Writes shardgate/client/v1/client.proto, shardgate/backend/v1/backend.proto,\n\
        shardgate/push/v1/push.proto and shardgate/registry/v1/registry.proto. A file that exists\n\
        is not overwritten.")]
    Proto {
        /// Directory for the files; it is made if it is missing
        dir: PathBuf,
    },
    /// A systemd unit for this program with this configuration
    #[command(after_help = "EXAMPLE\n  shardgate gen systemd --config /etc/shardgate \\\n    \
        > /etc/systemd/system/shardgate.service")]
    Systemd {
        #[command(flatten)]
        serve: ServeArgs,
        /// User and group it runs as
        #[arg(long, default_value = "shardgate", value_parser = user)]
        user: String,
    },
    /// Completions of verbs and flags for a shell
    #[command(after_help = "EXAMPLE\n  shardgate gen completions bash \\\n    \
        > ~/.local/share/bash-completion/completions/shardgate")]
    Completions {
        /// Shell that completes
        shell: clap_complete::Shell,
    },
    /// Write the manual, a page for each verb, into a directory
    #[command(after_help = "EXAMPLE\n  shardgate gen man ~/.local/share/man/man1")]
    Man {
        /// Directory for the pages; it is made if it is missing
        dir: PathBuf,
    },
}

/// The command line as a whole: what completions and manual are made of.
pub(super) fn command() -> clap::Command {
    Cli::command()
}

/// Checks a user's name by the rule of useradd, so that nothing in it ends a line of the unit.
fn user(text: &str) -> Result<String, String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if text.is_empty() || text.len() > 32 || !text.chars().all(valid) {
        return Err("a user's name: letters, digits, '_', '-', '.', at most 32".into());
    }
    Ok(text.to_owned())
}

/// Reads an address of the command line.
fn address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "must be an IP address and a port, e.g. 127.0.0.1:9001")
}

/// Heading of the options that several verbs have, below those of the verb itself.
const SHARED: &str = "Shared options";

/// The option of verbs that need the configuration and no more.
#[derive(Args)]
struct DirArgs {
    /// Directory of the configuration
    /// [default: $SHARDGATE_CONFIG, else ./shards if it is there, else built in]
    #[arg(long, value_name = "DIR", verbatim_doc_comment, help_heading = SHARED)]
    config: Option<PathBuf>,
}

/// The options of verbs that ask a gateway that runs.
#[derive(Args)]
struct AdminArgs {
    #[command(flatten)]
    dir: DirArgs,
    /// Address of the admin endpoint: health, statistics and administration
    #[arg(long, value_name = "ADDR", help_heading = SHARED)]
    admin: Option<String>,
}

/// The form of what a verb prints.
#[derive(Args)]
struct FormArgs {
    /// Form of the output
    #[arg(long = "format", value_enum, default_value_t)]
    form: Form,
}

/// The options of verbs that start a gateway, or show what a start would do.
#[derive(Args)]
struct ServeArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Address for clients: IP address and port
    #[arg(long, value_name = "ADDR", help_heading = SHARED)]
    listen: Option<String>,
    /// Number of shards, or auto: one for each allowed core, less one from 4 cores up
    #[arg(long, value_name = "N", help_heading = SHARED)]
    shards: Option<String>,
    /// Cores of shard 0, 1, ..., with commas between; also sets the number of shards
    #[arg(long, value_name = "LIST", help_heading = SHARED)]
    core: Option<String>,
    /// Do not run the demo services in this process
    #[arg(long, help_heading = SHARED)]
    no_demo: bool,
    /// Log filter: error, warn, info, or "warn,shardgate::backend=info"
    #[arg(long, value_name = "FILTER", help_heading = SHARED)]
    log: Option<String>,
}

impl From<DirArgs> for Serve {
    fn from(DirArgs { config }: DirArgs) -> Self {
        Self { config, overrides: Overrides::default() }
    }
}

impl From<AdminArgs> for Serve {
    fn from(AdminArgs { dir, admin }: AdminArgs) -> Self {
        Self { overrides: Overrides { admin, ..Overrides::default() }, ..dir.into() }
    }
}

impl From<ServeArgs> for Serve {
    fn from(args: ServeArgs) -> Self {
        let ServeArgs { admin, listen, shards, core, no_demo, log } = args;
        let Self { config, overrides } = admin.into();
        let overrides = Overrides { listen, shards, cores: core, no_demo, log, ..overrides };
        Self { config, overrides }
    }
}

/// Parses a command line that begins with the program's name. `Err`: help or usage were printed,
/// and this is the code to exit with.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Verb, ExitCode> {
    let args: Vec<OsString> = args.into_iter().collect();
    try_parse(args.clone()).map_err(|e| {
        // Without a terminal the message is lost, and the exit code says enough.
        let _ = match e.kind() {
            ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => e.print(),
            _ => writeln!(std::io::stderr(), "{}", one_line(&e, &args)),
        };
        if e.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS }
    })
}

/// A wrong usage in one line: the word, the rule that it breaks, the nearest right word, and the
/// command that shows the help of its verb.
fn one_line(error: &clap::Error, args: &[OsString]) -> String {
    let text = error.render().to_string().replace("subcommand", "verb");
    let said = text.lines().take_while(|line| !line.is_empty()).map(str::trim);
    let mut line = said.collect::<Vec<_>>().join(" ");
    // Of clap's tips some propose to pass a wrong flag as a value: only a right word is repeated.
    let tips = text.lines().filter_map(|line| line.trim().strip_prefix("tip: "));
    for tip in tips.filter(|tip| tip.contains("similar")) {
        line += &format!("; {tip}");
    }
    line += &format!("; help: {}", program());
    let mut command = Cli::command();
    for word in &args[1.min(args.len())..] {
        let Some(verb) = command.find_subcommand(word).cloned() else { break };
        line += &format!(" {}", verb.get_name());
        command = verb;
    }
    line + " --help"
}

pub(super) fn try_parse(args: impl IntoIterator<Item = OsString>) -> Result<Verb, clap::Error> {
    let cli = Cli::try_parse_from(args)?;
    Ok(match cli.verb {
        None => Verb::Serve(cli.serve.into()),
        Some(VerbArgs::Serve(args)) => Verb::Serve(args.into()),
        Some(VerbArgs::Check { what: None, serve }) => Verb::Check(serve.into()),
        Some(VerbArgs::Check { what: Some(CheckArgs::Token(serve)), .. }) => {
            Verb::CheckToken(serve.into())
        }
        Some(VerbArgs::Gen(GenArgs::Token { dir, new })) => {
            Verb::GenToken { serve: dir.into(), new }
        }
        Some(VerbArgs::Gen(GenArgs::Config { dir })) => {
            Verb::GenFiles { what: BuiltIn::Config, dir }
        }
        Some(VerbArgs::Gen(GenArgs::Proto { dir })) => Verb::GenFiles { what: BuiltIn::Proto, dir },
        Some(VerbArgs::Config { serve, in_force, format }) => {
            Verb::Config { serve: serve.into(), in_force, format }
        }
        Some(VerbArgs::Routes { admin, in_force, form: FormArgs { form } }) => {
            Verb::Routes { serve: admin.into(), in_force, form }
        }
        Some(VerbArgs::Explain { admin, args, form: FormArgs { form } }) => {
            Verb::Explain { serve: admin.into(), args, form }
        }
        Some(VerbArgs::Doctor(args)) => Verb::Doctor(args.into()),
        Some(VerbArgs::Drain { admin, instance, undo, form: FormArgs { form } }) => {
            Verb::Drain { serve: admin.into(), instance, undo, form }
        }
        Some(VerbArgs::Reload { admin, form: FormArgs { form } }) => {
            Verb::Reload { serve: admin.into(), form }
        }
        Some(VerbArgs::Trace { admin, shard, ms, file }) => {
            Verb::Trace { serve: admin.into(), shard, ms, file }
        }
        Some(VerbArgs::Gen(GenArgs::Systemd { serve, user })) => {
            Verb::GenSystemd { serve: serve.into(), user }
        }
        Some(VerbArgs::Gen(GenArgs::Completions { shell })) => Verb::GenCompletions(shell),
        Some(VerbArgs::Gen(GenArgs::Man { dir })) => Verb::GenMan(dir),
        Some(VerbArgs::Bench { args, form: FormArgs { form }, dir }) => {
            Verb::Bench { serve: dir.into(), args, form }
        }
        Some(VerbArgs::Histogram(HistogramArgs::Plot(args))) => Verb::PlotHistograms(args),
        Some(VerbArgs::Guide(args)) => Verb::Guide(args),
        Some(VerbArgs::Version) => Verb::Version,
        Some(VerbArgs::WsEcho { listen, tls_cert, tls_key }) => {
            Verb::WsEcho { listen, tls: tls_cert.zip(tls_key) }
        }
        Some(VerbArgs::DemoServices { listen, dir }) => {
            let listen = if listen.is_empty() { None } else { Some(three(listen)?) };
            Verb::DemoServices { listen, config: dir.config }
        }
    })
}

fn three(listen: Vec<SocketAddr>) -> Result<[SocketAddr; 3], clap::Error> {
    <[SocketAddr; 3]>::try_from(listen).map_err(|list| {
        let what = format!(
            "--listen names {} addresses; it takes three, for logic, chat and fight\n",
            list.len()
        );
        clap::Error::raw(ErrorKind::WrongNumberOfValues, what)
    })
}

#[cfg(test)]
mod tests;
