//! The program: parses the command line, runs the verb, exits.

use std::process::ExitCode;

use shardgate::cli::{self, EXIT_START, EXIT_USAGE, Serve, Verb};
use shardgate::{boot, demo, echo};

// Buffers are freed on the thread that made them in the steady state; mimalloc keeps those paths
// free of locks, and takes remote frees (payloads handed to a service's thread) well.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    boot::abort_on_panic();
    if !boot::has_room() {
        return ExitCode::from(EXIT_START);
    }
    run()
}

/// Not a part of `main`, whose frame has to fit into the smallest stack.
#[inline(never)]
fn run() -> ExitCode {
    let verb = match cli::parse(std::env::args_os()) {
        Ok(verb) => verb,
        Err(code) => return code,
    };
    let verb = match cli::run(verb) {
        Ok(output) => {
            output.print();
            return ExitCode::from(output.code);
        }
        Err(serving) => *serving,
    };
    match verb {
        Verb::Serve(args) => boot::serve(&args),
        Verb::WsEcho { listen, tls } => {
            exit(echo::serve(listen, tls.as_ref()), &format!("ws-echo on {listen}"))
        }
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
        Verb::Check(_)
        | Verb::CheckToken(_)
        | Verb::GenToken { .. }
        | Verb::Config { .. }
        | Verb::Routes { .. }
        | Verb::Explain { .. }
        | Verb::Doctor(_)
        | Verb::Drain { .. }
        | Verb::Reload { .. }
        | Verb::Trace { .. }
        | Verb::GenFiles { .. }
        | Verb::Bench { .. }
        | Verb::PlotHistograms(_)
        | Verb::Guide(_)
        | Verb::GenSystemd { .. }
        | Verb::GenCompletions(_)
        | Verb::GenMan(_)
        | Verb::Version => unreachable!("done by cli::run"),
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
