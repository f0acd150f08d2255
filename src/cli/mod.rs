//! The verbs: what the command line asks for, and what each says and exits with. Starting things is
//! `boot`'s.

mod args;
mod check;
mod client;
mod remote;
mod routes;
mod settings;
mod systemd;
mod table;
mod token;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

pub use args::parse;
pub use routes::ExplainArgs;
pub use settings::Format;
pub use token::NewToken;

use crate::auth::load::LocalKeys;
use crate::clock::unix_now_s;
use crate::config::{self, Config, Loader, Overrides, Problems};
use crate::preflight::doctor;
use crate::tls::load::LocalTls;

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
        /// Certificate chain and key, if it speaks TLS.
        tls: Option<(PathBuf, PathBuf)>,
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
    /// Explain a token.
    CheckToken(Serve),
    /// Make a token.
    GenToken {
        /// By this configuration.
        serve: Serve,
        /// Which.
        new: NewToken,
    },
    /// Show every key.
    Config {
        /// Where it is.
        serve: Serve,
        /// Of the gateway that runs.
        in_force: bool,
        /// How.
        format: Format,
    },
    /// Show the routes.
    Routes {
        /// Where they are.
        serve: Serve,
        /// Of the gateway that runs.
        in_force: bool,
    },
    /// Explain one message's way.
    Explain {
        /// Where the routes are.
        serve: Serve,
        /// Which message.
        ask: ExplainArgs,
    },
    /// Look at this machine.
    Doctor(Serve),
    /// Drain the gateway or an instance.
    Drain {
        /// Where it is.
        serve: Serve,
        /// The instance; `None` = the gateway.
        instance: Option<String>,
        /// Give it its keys again.
        undo: bool,
    },
    /// Have the files read again.
    Reload(Serve),
    /// Print a unit.
    GenSystemd {
        /// For this configuration.
        serve: Serve,
        /// Who it runs as.
        user: String,
    },
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

/// What a verb says, and the code to exit with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// For stdout.
    pub text: String,
    /// Exit code.
    pub code: u8,
}

impl Output {
    fn fine(text: String) -> Self {
        Self { text: text.trim_end().to_owned(), code: 0 }
    }

    fn wrong(text: String, code: u8) -> Self {
        Self { text: text.trim_end().to_owned(), code }
    }
}

/// Does what `verb` asks, unless it is one that serves: `Err` gives that one back.
pub fn run(verb: Verb) -> Result<Output, Box<Verb>> {
    let env = environment();
    Ok(match verb {
        Verb::Serve(_) | Verb::WsEcho { .. } | Verb::DemoServices { .. } => {
            return Err(Box::new(verb));
        }
        Verb::Check(serve) => {
            let with_files = |config| {
                let tls = LocalTls::read(&config, unix_now_s(), None);
                Problems::join(LocalKeys::read(&config), tls).map(|_| config)
            };
            check::check(serve.load(&env).and_then(with_files))
        }
        Verb::CheckToken(serve) => token::explain(serve.load(&env), std::io::stdin()),
        Verb::GenToken { serve, new } => token::generate(serve.load(&env), &new),
        Verb::Config { serve, in_force, format } => {
            settings::show(serve.load(&env), in_force, format)
        }
        Verb::Routes { serve, in_force } => routes::show(serve.load(&env), in_force),
        Verb::Explain { serve, ask } => routes::explain(serve.load(&env), &ask),
        Verb::Doctor(serve) => match serve.load(&env) {
            Err(problems) => Output::wrong(problems.to_string(), EXIT_USAGE),
            Ok(config) => {
                let running = client::get(&config.gateway.admin, "/health").is_ok();
                let findings = doctor::examine(&config, running);
                let code = if doctor::any_fails(&findings) { EXIT_START } else { 0 };
                Output::wrong(doctor::report(&findings), code)
            }
        },
        Verb::Drain { serve, instance, undo } => {
            remote::drain(serve.load(&env), instance.as_deref(), undo)
        }
        Verb::Reload(serve) => remote::reload(serve.load(&env)),
        Verb::GenSystemd { serve, user } => gen_systemd(&serve, &user, &env),
        Verb::Version => Output::fine(version()),
    })
}

fn gen_systemd(serve: &Serve, user: &str, env: &[(String, String)]) -> Output {
    let loader = match serve.loader(env) {
        Ok(loader) => loader,
        Err(problems) => return Output::wrong(problems.to_string(), EXIT_USAGE),
    };
    let dir = loader.dir().map(std::fs::canonicalize).transpose();
    match (loader.check(&[]), std::env::current_exe(), dir) {
        (Err(problems), ..) => Output::wrong(problems.to_string(), EXIT_USAGE),
        (Ok(_), Err(error), _) | (Ok(_), _, Err(error)) => {
            Output::wrong(format!("no absolute path for the unit: {error}"), EXIT_START)
        }
        (Ok(config), Ok(program), Ok(dir)) => {
            Output::fine(systemd::unit(&config, &program, dir.as_deref(), user))
        }
    }
}

/// Version, target and kind of build.
fn version() -> String {
    let kind = if cfg!(debug_assertions) { "debug" } else { "release" };
    let (arch, os) = (std::env::consts::ARCH, std::env::consts::OS);
    format!("shardgate {} ({arch}-{os}, {kind} build)", env!("CARGO_PKG_VERSION"))
}

/// The `SHARDGATE…` variables of this process. Ones that are no Unicode are shown with a
/// replacement character, which the check of their value then refuses.
pub fn environment() -> Vec<(String, String)> {
    let text = |s: OsString| s.to_string_lossy().into_owned();
    let all = std::env::vars_os().map(|(name, value)| (text(name), text(value)));
    all.filter(|(name, _)| name.starts_with("SHARDGATE")).collect()
}
