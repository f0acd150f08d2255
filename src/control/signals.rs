//! Signals of the process, as requests to control.

use std::io;

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::request::ControlRequest;

/// Installs the signal handlers; a task sends a request for each signal until control ends.
pub fn forward(requests: mpsc::Sender<ControlRequest>) -> io::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let mut hup = signal(SignalKind::hangup())?;
    let mut usr1 = signal(SignalKind::user_defined1())?;
    // With a handler, a write beyond `ulimit -f` is an error (EFBIG), not the end of the process.
    drop(signal(SignalKind::from_raw(Signal::XFSZ.as_raw()))?);
    tokio::spawn(async move {
        loop {
            let request = tokio::select! {
                _ = term.recv() => ControlRequest::Stop("SIGTERM"),
                _ = int.recv() => ControlRequest::Stop("SIGINT"),
                // The result is in the log and in /health, so nobody waits for it.
                _ = hup.recv() => ControlRequest::Reload(oneshot::channel().0),
                // The log says where the files are.
                _ = usr1.recv() => ControlRequest::Dump(oneshot::channel().0),
            };
            if requests.send(request).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}
