//! The program: parse, dispatch, exit.

use std::process::ExitCode;

use shardgate::cli::{self, EXIT_START, EXIT_USAGE, Serve, Verb};
use shardgate::{boot, demo, echo};

// Buffers are freed on the thread that made them in the steady state; mimalloc keeps those paths
// free of locks, and takes remote frees (payloads handed to a service's thread) well.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let verb = match cli::parse(std::env::args_os()) {
        Ok(verb) => verb,
        Err(code) => return code,
    };
    match verb {
        Verb::Serve(args) => boot::serve(&args),
        Verb::WsEcho { listen } => exit(echo::serve(listen), &format!("ws-echo on {listen}")),
        Verb::DemoServices { listen, config } => {
            let args = Serve { config, ..Serve::default() };
            match args.load(&cli::environment()) {
                Ok(config) => {
                    let mut settings = config.gateway.demo;
                    settings.addresses = listen.unwrap_or(settings.addresses);
                    exit(demo::serve(&settings, None), "demo-services")
                }
                Err(problems) => {
                    eprintln!("{problems}");
                    ExitCode::from(EXIT_USAGE)
                }
            }
        }
        Verb::Check(args) => {
            let (text, code) = cli::check(args.load(&cli::environment()));
            println!("{text}");
            ExitCode::from(code)
        }
        Verb::Version => {
            println!("shardgate {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
    }
}

fn exit(result: std::io::Result<()>, what: &str) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{what}: {error}");
            ExitCode::from(EXIT_START)
        }
    }
}
