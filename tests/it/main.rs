//! End to end: the real program, real sockets.
fn main() {}
