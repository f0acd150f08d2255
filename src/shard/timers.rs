//! Times that the shell of a shard waits for: numbers in its [`crate::readiness::timers::Timers`].
//!
//! The tick is not among them, the pulse brings it ([`crate::shard::pulse`]); nor are the timers of
//! channels, which the readiness set has ([`crate::readiness`]).

/// An action of the shell that waits for its time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Timer {
    /// The engine has a retry, or a batch whose window ends.
    Engine,
    /// The shard has stopped, and waits no longer for its channels.
    ChannelsEnd,
    /// A listener, by its number, tries again after the process was out of descriptors.
    Accept(usize),
}

impl Timer {
    /// Number of the timer.
    pub(crate) fn number(self) -> usize {
        match self {
            Self::Engine => 0,
            Self::ChannelsEnd => 1,
            Self::Accept(listener) => 2 + listener,
        }
    }

    /// The timer with a number.
    pub(crate) fn of(number: usize) -> Self {
        match number {
            0 => Self::Engine,
            1 => Self::ChannelsEnd,
            listener => Self::Accept(listener - 2),
        }
    }
}
