//! What instances say of a window when they seal it.

use std::fmt;

/// What came for a window, to one instance.
#[derive(Clone, Copy, Default)]
pub(super) struct WindowStats {
    /// Ids that were accepted, repeats among them.
    pub(super) accepted: u64,
    /// In mode `exact`: how many of them Redis called new. If Redis has fewer of all instances in the end, it lost
    /// some.
    pub(super) new: u64,
    /// Those that Redis has lost and nobody has any more.
    pub(super) lost: u64,
    /// In how many shards Redis was given this instance's part of the sketch, as a key of its own.
    pub(super) parts: u64,
}

impl WindowStats {
    /// Of an instance that nothing is known of: something may be missing.
    pub(super) const UNKNOWN: Self = Self { accepted: 0, new: 0, lost: 1, parts: 0 };

    /// Reads `<accepted> <new> <lost> <parts>`. What an instance has not written is [`Self::UNKNOWN`].
    pub(super) fn read(text: &str) -> Self {
        let numbers: Result<Vec<u64>, _> = text.split(' ').map(str::parse).collect();
        match numbers.as_deref() {
            Ok(&[accepted, new, lost, parts]) => Self { accepted, new, lost, parts },
            _ => Self::UNKNOWN,
        }
    }
}

impl fmt::Display for WindowStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.accepted, self.new, self.lost, self.parts)
    }
}
