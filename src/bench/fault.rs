//! The reasons for which there is no connection, and their ways out.

use std::fmt;
use std::io;

use rustix::io::Errno;

use super::plan::Plan;
use crate::config::program;
use crate::wire::close::BAD_TOKEN;

/// Reason of a connection that did not come to be.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    /// Nobody listens at the address.
    NobodyListens,
    /// This machine has no free port for another connection from its address.
    NoFreePort,
    /// This process may open no further file.
    NoFreeFile,
    /// Any other error of the system.
    System(String),
    /// The other side said nothing for so long that it was given up.
    Silent,
    /// The other side ended the connection before the welcome.
    Ended,
    /// The upgrade was answered with this HTTP status.
    Http(u16),
    /// The other side is no gateway.
    NotAGateway(&'static str),
    /// TLS failed.
    Tls(String),
    /// The token was refused, with this reason.
    SignIn(String),
    /// A session cannot be made resumable, or resumed, for this reason.
    Resume(String),
    /// The gateway closed the connection with this code before it was signed in.
    Closed(u16),
}

impl Fault {
    /// The fault that an error of the system means.
    pub fn of(error: io::Error) -> Self {
        if let Some(inner) = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
            return Self::Tls(inner.to_string());
        }
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::CONNREFUSED) => Self::NobodyListens,
            Some(Errno::ADDRNOTAVAIL | Errno::ADDRINUSE) => Self::NoFreePort,
            Some(Errno::MFILE | Errno::NFILE) => Self::NoFreeFile,
            Some(Errno::CONNRESET | Errno::PIPE) => Self::Ended,
            _ => Self::System(error.to_string()),
        }
    }

    /// The way out, in words.
    pub fn way_out(&self, plan: &Plan) -> String {
        let program = program();
        let target = &plan.target;
        let other = if target.is_secure { "ws" } else { "wss" };
        match self {
            Self::NobodyListens => {
                format!("start one with `{program}`, or name another in the URL")
            }
            Self::NoFreePort => "spread the connections over more addresses with --sources N \
                                 (127.0.0.0/8), or see sysctl net.ipv4.ip_local_port_range"
                .into(),
            Self::NoFreeFile => "raise the limit of open files: ulimit -n".into(),
            Self::System(_) => format!("see whether this machine reaches {}", target.authority()),
            Self::Silent => "see which program listens there, and its log".into(),
            Self::Ended => {
                format!("does it speak {other}://, or is it at a limit? Its log says more")
            }
            Self::Http(401) | Self::SignIn(_) | Self::Closed(BAD_TOKEN) => {
                format!("see why: `{program} check token < FILE`")
            }
            Self::Http(404) => {
                format!("the path is {:?}: the gateway's is its key path", target.path)
            }
            Self::Http(429 | 503) => format!(
                "the gateway has a limit there: take fewer connections, more --sources, or see \
                 `{program} guide limits`"
            ),
            Self::Http(_) | Self::NotAGateway(_) => "is this the URL of a gateway?".into(),
            Self::Tls(_) => {
                "--ca FILE names the authority of its certificate, --insecure takes any".into()
            }
            Self::Resume(_) => {
                "does it keep sessions (session.ttl_ms above 0), and are they signed in \
                                (--tokens)? Else take no --resume"
                    .into()
            }
            Self::Closed(_) => format!("its code is in `{program} guide codes`"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NobodyListens => f.write_str("nobody listens there"),
            Self::NoFreePort => f.write_str("this machine has no free port left"),
            Self::NoFreeFile => f.write_str("this process may open no further file"),
            Self::System(what) => f.write_str(what),
            Self::Silent => f.write_str("it does not answer"),
            Self::Ended => f.write_str("it ended the connection before the welcome"),
            Self::Http(status) => write!(f, "HTTP {status}"),
            Self::NotAGateway(why) => write!(f, "it is no gateway: {why}"),
            Self::Tls(what) => write!(f, "TLS: {what}"),
            Self::SignIn(reason) => write!(f, "the token was refused with {reason}"),
            Self::Resume(reason) => write!(f, "resume was refused with {reason}"),
            Self::Closed(code) => write!(f, "it closed with {code} before the load began"),
        }
    }
}
