//! The begin of a thread that may never run what it was started for. glommio 0.9 goes to sleep with
//! its first task unrun if the thread loses its core for a whole preempt timer at the wrong moment,
//! and nothing can wake it: nobody has its waker yet. Then another thread begins in its place.

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

/// Time in which a thread has to begin: a second, where an executor takes some milliseconds.
const BEGIN_WITHIN: Duration = Duration::from_secs(1);
/// Threads that are tried. One of a thousand did not begin on a machine with four times as much
/// work as cores.
const ATTEMPTS_MAX: usize = 10;

/// The part that a thread is to play: the first one that takes it has it.
pub(super) struct Part<T> {
    /// Holds the part until it is taken.
    what: Receiver<T>,
    began: Sender<()>,
}

impl<T> Part<T> {
    /// Takes the part: the thread has begun. `None`: another one has it, and this one is to end.
    pub(super) fn take(&self) -> Option<T> {
        let taken = self.what.try_recv().ok()?;
        // Nobody waits for a thread that begins too late.
        let _ = self.began.try_send(());
        Some(taken)
    }
}

/// Starts threads by `spawn` until one of them has taken `what`, and returns that one. Those that
/// have not begun are left: they sleep, and end if they ever wake.
pub(super) fn begin<T: Send>(
    what: T,
    spawn: impl Fn(Part<T>) -> io::Result<JoinHandle<()>>,
) -> io::Result<JoinHandle<()>> {
    let (hand_out, parts) = bounded(1);
    assert!(hand_out.try_send(what).is_ok(), "an empty channel has room for one");
    let mut earlier = None;
    for _ in 0..ATTEMPTS_MAX {
        let (began, has_begun) = bounded(1);
        let thread = spawn(Part { what: parts.clone(), began })?;
        match has_begun.recv_timeout(BEGIN_WITHIN) {
            Ok(()) => return Ok(thread),
            // It found the part taken, by the one before it that began late; or it failed.
            Err(RecvTimeoutError::Disconnected) => return Ok(earlier.unwrap_or(thread)),
            Err(RecvTimeoutError::Timeout) => {}
        }
        // It may begin at this moment.
        if parts.is_empty() {
            return Ok(thread);
        }
        earlier = Some(thread);
    }
    Err(io::Error::other(format!("no thread of {ATTEMPTS_MAX} began to run")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex, mpsc};

    #[test]
    fn another_thread_begins_in_the_place_of_one_that_never_does() {
        let (spawned, played) = (AtomicUsize::new(0), Arc::new(Mutex::new(Vec::new())));
        let (wake, sleeps) = mpsc::channel::<()>();
        let sleeps = Arc::new(Mutex::new(sleeps));
        let (late, is_over) = mpsc::channel();
        let thread = begin("the part", |part| {
            let n = spawned.fetch_add(1, Ordering::SeqCst);
            let (played, sleeps, late) = (played.clone(), sleeps.clone(), late.clone());
            Ok(std::thread::spawn(move || {
                if n == 0 {
                    let _ = sleeps.lock().unwrap().recv();
                }
                played.lock().unwrap().push((n, part.take()));
                let _ = late.send(n);
            }))
        });
        thread.unwrap().join().unwrap();
        assert_eq!(is_over.recv(), Ok(1));
        assert_eq!(*played.lock().unwrap(), [(1, Some("the part"))]);
        // The first one wakes after all, and finds nothing to do.
        wake.send(()).unwrap();
        assert_eq!(is_over.recv(), Ok(0));
        assert_eq!(played.lock().unwrap().last(), Some(&(0, None)));
    }

    #[test]
    fn a_thread_that_cannot_be_started_is_an_error() {
        let refused = begin((), |_| Err(io::Error::other("no threads")));
        assert_eq!(refused.unwrap_err().to_string(), "no threads");
    }
}
