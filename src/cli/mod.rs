//! The verbs of the command line, with their output and exit codes. Verbs that start something are
//! `boot`'s.

mod args;
mod bench;
mod built_in;
mod chart;
mod check;
mod client;
mod explain;
mod guide;
mod histogram;
mod percentile_file;
mod remote;
mod routes;
mod settings;
mod shell;
mod systemd;
mod table;
mod token;

use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

pub use args::parse;
pub use bench::BenchArgs;
pub use built_in::BuiltIn;
pub use explain::ExplainArgs;
pub use guide::GuideArgs;
pub use histogram::PlotArgs;
pub use settings::Format;
pub use token::NewToken;

use crate::auth::load::LocalKeys;
use crate::clock::unix_now_s;
use crate::config::key_files::Reading;
use crate::config::{self, Config, Loader, Overrides, Problems};
use crate::preflight::doctor;
use crate::tls::load::LocalTls;

/// Exit code of a start or run that failed.
pub const EXIT_START: u8 = 1;
/// Exit code of a wrong usage or configuration; EX_USAGE of sysexits.h.
pub const EXIT_USAGE: u8 = 64;

/// A verb with its flags.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Verb {
    /// Run the gateway.
    Serve(Serve),
    /// Echo raw WebSocket messages.
    WsEcho {
        listen: SocketAddr,
        /// Certificate chain and key for TLS.
        tls: Option<(PathBuf, PathBuf)>,
    },
    /// Run only the demo services.
    DemoServices {
        /// Addresses of logic, chat and fight; `None` = those of the configuration.
        listen: Option<[SocketAddr; 3]>,
        /// Directory of the configuration.
        config: Option<PathBuf>,
    },
    /// Check the configuration.
    Check(Serve),
    /// Explain a client's token.
    CheckToken(Serve),
    /// Make a client's token.
    GenToken { serve: Serve, new: NewToken },
    /// Show every key of the configuration.
    Config {
        serve: Serve,
        /// Whether the gateway that runs is asked.
        in_force: bool,
        format: Format,
    },
    /// Show the routes with their services.
    Routes {
        serve: Serve,
        /// Whether the gateway that runs is asked.
        in_force: bool,
        form: Form,
    },
    /// Explain which instance gets a message.
    Explain { serve: Serve, args: ExplainArgs, form: Form },
    /// Examine this machine.
    Doctor(Serve),
    /// Drain the gateway or an instance.
    Drain {
        serve: Serve,
        /// Name of the instance; `None` = the gateway drains.
        instance: Option<String>,
        /// Whether the instance gets its keys again.
        undo: bool,
        form: Form,
    },
    /// Have the gateway that runs read its files again.
    Reload { serve: Serve, form: Form },
    /// Record the turns of a shard of the gateway that runs.
    Trace {
        serve: Serve,
        shard: u16,
        /// Length in milliseconds.
        ms: u64,
        /// File that gets the trace.
        file: PathBuf,
    },
    /// Write files that are built in.
    GenFiles {
        what: BuiltIn,
        /// Directory that gets the files.
        dir: PathBuf,
    },
    /// Put load on a gateway.
    Bench { serve: Serve, args: Box<BenchArgs>, form: Form },
    /// Draw files of histograms.
    PlotHistograms(PlotArgs),
    /// Show the guide.
    Guide(GuideArgs),
    /// Print the script by which a shell completes verbs and flags.
    GenCompletions(clap_complete::Shell),
    /// Write the manual, a page for each verb, into a directory.
    GenMan(PathBuf),
    /// Print a systemd unit.
    GenSystemd {
        serve: Serve,
        /// User that the gateway runs as.
        user: String,
    },
    /// Print the version.
    Version,
}

/// Form of the output of a verb that asks a gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// Lines for people.
    #[default]
    Text,
    /// The answer as JSON, for programs.
    Json,
}

/// Flags that change what is served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serve {
    /// Directory of the configuration.
    pub config: Option<PathBuf>,
    /// Values that override files and environment.
    pub overrides: Overrides,
}

impl Serve {
    /// Opens the files of the configuration, under these flags and the `SHARDGATE…` variables of
    /// `env`.
    pub fn loader(&self, env: &[(String, String)]) -> Result<Loader, Problems> {
        Loader::open(self.config.as_deref(), env, &self.overrides)
    }

    /// Reads and checks the configuration.
    pub fn load(&self, env: &[(String, String)]) -> Result<Config, Problems> {
        config::load(self.config.as_deref(), env, &self.overrides)
    }
}

/// Output of a verb, and the code to exit with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Output {
    /// Text for stdout.
    pub text: String,
    /// Text for stderr: what is said about that of stdout, which goes into a file.
    pub aside: String,
    pub code: u8,
    /// Whether a terminal shows it by a pager: a text to be read from its beginning.
    pub paged: bool,
}

impl Output {
    fn fine(text: String) -> Self {
        Self::wrong(text, 0)
    }

    fn wrong(text: String, code: u8) -> Self {
        Self { text: text.trim_end().to_owned(), aside: String::new(), code, paged: false }
    }

    fn paged(text: String) -> Self {
        Self { paged: true, ..Self::fine(text) }
    }

    /// Shows the text on stdout.
    pub fn print(&self) {
        if self.paged {
            guide::page(&self.text);
        }
        // A reader that has gone away (`| head`) is no error.
        let _ = writeln!(std::io::stdout(), "{}", self.text);
        if !self.aside.is_empty() {
            let _ = writeln!(std::io::stderr(), "{}", self.aside);
        }
    }
}

/// Carries out `verb`, unless it is one that serves: `Err` gives that one back.
pub fn run(verb: Verb) -> Result<Output, Box<Verb>> {
    let env = environment();
    Ok(match verb {
        Verb::Serve(_) | Verb::WsEcho { .. } | Verb::DemoServices { .. } => {
            return Err(Box::new(verb));
        }
        Verb::Check(serve) => {
            let with_files = |config| {
                let tls = LocalTls::read(&config, unix_now_s(), None, Reading::Start);
                Problems::join(LocalKeys::read(&config), tls).map(|_| config)
            };
            check::check(serve.load(&env).and_then(with_files))
        }
        Verb::CheckToken(serve) => token::explain(serve.load(&env), std::io::stdin()),
        Verb::GenToken { serve, new } => token::generate(serve.load(&env), &new),
        Verb::Config { serve, in_force, format } => {
            settings::show(serve.load(&env), in_force, format)
        }
        Verb::Routes { serve, in_force, form } => routes::show(serve.load(&env), in_force, form),
        Verb::Explain { serve, args, form } => explain::explain(serve.load(&env), &args, form),
        Verb::Doctor(serve) => examine(&serve, &env),
        Verb::Drain { serve, instance, undo, form } => {
            remote::drain(serve.load(&env), instance.as_deref(), undo, form)
        }
        Verb::Reload { serve, form } => remote::reload(serve.load(&env), form),
        Verb::Trace { serve, shard, ms, file } => remote::trace(serve.load(&env), shard, ms, &file),
        Verb::GenFiles { what, dir } => built_in::write(what, &dir),
        Verb::Bench { serve, args, form } => bench::bench(&args, form, || serve.load(&env)),
        Verb::PlotHistograms(args) => histogram::plot(&args),
        Verb::Guide(args) => guide::show(&args),
        Verb::GenSystemd { serve, user } => gen_systemd(&serve, &user, &env),
        Verb::GenCompletions(shell) => shell::completions(args::command(), shell),
        Verb::GenMan(dir) => shell::manual(args::command(), &dir),
        Verb::Version => Output::fine(version()),
    })
}

fn examine(serve: &Serve, env: &[(String, String)]) -> Output {
    let loaded =
        serve.loader(env).and_then(|loader| Ok((loader.check(&Default::default())?, loader)));
    match loaded {
        Err(problems) => Output::wrong(problems.to_string(), EXIT_USAGE),
        Ok((config, loader)) => {
            let running = client::get(&config.gateway.admin, "/health").is_ok();
            let findings = doctor::examine(&config, &loader, running);
            let code = if doctor::any_fails(&findings) { EXIT_START } else { 0 };
            Output::wrong(doctor::report(&findings), code)
        }
    }
}

fn gen_systemd(serve: &Serve, user: &str, env: &[(String, String)]) -> Output {
    let loader = match serve.loader(env) {
        Ok(loader) => loader,
        Err(problems) => return Output::wrong(problems.to_string(), EXIT_USAGE),
    };
    let dir = loader.dir().map(std::fs::canonicalize).transpose();
    match (loader.check(&Default::default()), std::env::current_exe(), dir) {
        (Err(problems), ..) => Output::wrong(problems.to_string(), EXIT_USAGE),
        (Ok(_), Err(error), _) | (Ok(_), _, Err(error)) => Output::wrong(
            format!("the unit needs absolute paths, and one cannot be found: {error}"),
            EXIT_START,
        ),
        (Ok(config), Ok(program), Ok(dir)) => {
            let (program, dir) = (program.as_path(), dir.as_deref());
            let flags = loader.overrides();
            let unit = systemd::Unit { config: &config, program, dir, flags, user };
            let lines: Vec<String> =
                unit.faults(env).iter().map(|f| format!("warning: {f}")).collect();
            Output { aside: lines.join("\n"), ..Output::fine(unit.text()) }
        }
    }
}

/// Text of version, target and kind of build.
fn version() -> String {
    let kind = if cfg!(debug_assertions) { "debug" } else { "release" };
    let (arch, os) = (std::env::consts::ARCH, std::env::consts::OS);
    format!("shardgate {} ({arch}-{os}, {kind} build)", env!("CARGO_PKG_VERSION"))
}

/// The `SHARDGATE…` variables of this process, in letters of any size. Variables that are no
/// Unicode are shown with a replacement character, which the check of their value then refuses.
pub fn environment() -> Vec<(String, String)> {
    let text = |s: OsString| s.to_string_lossy().into_owned();
    let all = std::env::vars_os().map(|(name, value)| (text(name), text(value)));
    let is_ours = |name: &str| name.get(..9).is_some_and(|p| p.eq_ignore_ascii_case("SHARDGATE"));
    all.filter(|(name, _)| is_ours(name)).collect()
}
