//! Memory of an idle connection, counted byte for byte.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};

use super::*;
use crate::tls::session::IDLE_BYTES;
use crate::tls::session::{CIPHER_BYTES_MAX, Session};

thread_local! {
    /// Bytes that this thread has allocated and not freed.
    static HELD: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, which also counts.
struct Counting;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = HELD.try_with(|held| held.set(held.get() + layout.size() as isize));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        let _ = HELD.try_with(|held| held.set(held.get() - layout.size() as isize));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Bytes that `work` allocates and keeps.
fn held<T>(work: impl FnOnce() -> T) -> (T, isize) {
    let before = HELD.get();
    let kept = work();
    (kept, HELD.get() - before)
}

#[test]
fn an_idle_connection_holds_what_the_budget_says() {
    let issuer = issuer();
    let server = server(&issuer, &["a.test"]);
    for version in [&TLS12, &TLS13] {
        let config = Arc::new(client(&issuer, &[version]));
        let name = ServerName::try_from("a.test").unwrap();
        let mut client = ClientConnection::new(config, name).unwrap();
        let mut scratch = vec![0; CIPHER_BYTES_MAX];
        let (mut session, mut bytes) = held(|| Box::new(Session::new(&server).unwrap()));
        let mut plain = Vec::with_capacity(1 << 20);
        for n in 0..6 {
            // Two handshakes' worth of turns, then a large message each way.
            if n > 3 {
                std::io::Write::write_all(&mut client.writer(), &[1; 20_000]).unwrap();
            }
            let mut up = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut up).unwrap();
            }
            let (_, more) = held(|| session.receive(&mut up, &mut plain).unwrap());
            bytes += more;
            let says: &[u8] = if n > 3 { &[2; 30_000] } else { &[] };
            let mut down = Vec::with_capacity(1 << 20);
            let (told, more) = held(|| {
                session.flush(says, &mut scratch, |bytes| {
                    down.extend_from_slice(bytes);
                    Some(bytes.len())
                })
            });
            assert_eq!(told, Some(says.len()));
            bytes += more;
            let mut down = std::io::Cursor::new(down);
            while client.read_tls(&mut down).unwrap() > 0 {
                client.process_new_packets().unwrap();
                // The bytes that are read do not matter, nor does the end.
                let _ = std::io::Read::read_to_end(&mut client.reader(), &mut Vec::new());
            }
        }
        assert!(!session.is_handshaking() && plain.len() >= 40_000);
        eprintln!("{version:?}: {bytes} of which {} inline", size_of::<Session>());
        assert!((1..=IDLE_BYTES as isize).contains(&bytes), "{version:?}: {bytes}");
    }
}
