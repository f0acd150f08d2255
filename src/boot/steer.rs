//! Steering of new connections by processor (`shards.steer_by_cpu`): the kernel runs a small
//! program for each new connection, which names the shard on whose core its first packet was
//! received. So the handshake's packets stay in that core's caches.
//!
//! The kernel numbers the listeners of an address in the order in which they began to listen, so
//! they have to be there in the order of the shards, and all of them, before the program is
//! attached. When one is closed the last one takes its number: the shards close theirs together.

use std::io;
use std::mem::size_of_val;
use std::net::TcpListener;
use std::os::fd::AsRawFd;

use libc::{sock_filter, sock_fprog};

use crate::limits::SHARDS_MAX;

/// Loads the number of the processor on which the program runs.
const LOAD_CPU: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
/// Skips as many instructions as it says, if the number is not its own.
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
/// Replaces the number by its remainder.
const REMAINDER: u32 = libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K;
/// Ends with a fixed answer.
const ANSWER: u32 = libc::BPF_RET | libc::BPF_K;
/// Ends with the number as the answer.
const ANSWER_NUMBER: u32 = libc::BPF_RET | libc::BPF_A;

// Two instructions a shard and three more; the kernel takes no longer program.
const _: () = assert!(2 * SHARDS_MAX + 3 <= libc::BPF_MAXINSNS as usize);

/// Steers the connections of `listeners`, one of each shard in their order, all on one address, to
/// the shards on `cores`. The error is that of the kernel, and nothing has changed then.
pub(super) fn steer(listeners: &[TcpListener], cores: &[usize]) -> io::Result<()> {
    // The listeners of an address are a group, and any of them stands for it.
    let (Some(one), 2..) = (listeners.first(), listeners.len()) else { return Ok(()) };
    let mut filter = program(cores);
    let length = filter.len() as u16; // asserted above
    let program = sock_fprog { len: length, filter: filter.as_mut_ptr() };
    // SAFETY: the socket is open, `program` is what this option takes, its size is the one given,
    // and it points to `length` instructions, which live through the call. The kernel copies both,
    // checks the instructions, and writes to neither.
    let done = unsafe {
        libc::setsockopt(
            one.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The program: from the number of a processor to the shard on it. A processor that no shard is on
/// gets the remainder of its number, so that several of them have several shards.
fn program(cores: &[usize]) -> Vec<sock_filter> {
    let step = |code: u32, skip: u8, k: u32| sock_filter { code: code as u16, jt: 0, jf: skip, k };
    let cpu = libc::SKF_AD_OFF.wrapping_add(libc::SKF_AD_CPU).cast_unsigned();
    let mut all = vec![step(LOAD_CPU, 0, cpu)];
    for (&core, shard) in cores.iter().zip(0..) {
        all.extend([step(IF_EQUAL, 1, core as u32), step(ANSWER, 0, shard)]);
    }
    all.extend([step(REMAINDER, 0, cores.len() as u32), step(ANSWER_NUMBER, 0, 0)]);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answer of a program on a processor, as the kernel would run it.
    fn answer(program: &[sock_filter], cpu: u32) -> u32 {
        let (mut at, mut number) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            match u32::from(code) {
                LOAD_CPU => number = cpu,
                IF_EQUAL => at += usize::from(if number == k { jt } else { jf }),
                REMAINDER => number %= k,
                ANSWER => return k,
                ANSWER_NUMBER => return number,
                other => panic!("unknown code {other}"),
            }
        }
    }

    #[test]
    fn a_processor_has_its_shard_and_one_without_has_some_shard() {
        for cores in [vec![0, 1], vec![6, 2, 4], (0..SHARDS_MAX).rev().collect()] {
            let program = program(&cores);
            for (shard, &core) in cores.iter().enumerate() {
                assert_eq!(answer(&program, core as u32), shard as u32, "{core} of {cores:?}");
            }
            for cpu in (0..2_000).filter(|&cpu| !cores.contains(&(cpu as usize))) {
                assert_eq!(answer(&program, cpu), cpu % cores.len() as u32);
            }
        }
    }

    #[test]
    fn a_lone_shard_needs_no_program_and_a_socket_that_takes_none_is_an_error() {
        let bind = || TcpListener::bind("127.0.0.1:0").expect("a free port");
        assert!(steer(&[bind()], &[0]).is_ok());
        // Neither is in a group.
        let refused = steer(&[bind(), bind()], &[0, 1]).expect_err("no SO_REUSEPORT");
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    }
}
