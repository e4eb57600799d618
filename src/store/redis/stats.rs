//! The stats of a window that an instance stores when it seals the window.

use std::fmt;

/// What one instance had of a window.
#[derive(Clone, Copy, Default)]
pub(super) struct WindowStats {
    /// Ids that were accepted, repeats among them.
    pub(super) accepted: u64,
    /// In mode `exact`, how many of them Redis called new. If Redis has fewer ids than the sum over all instances, it
    /// lost some.
    pub(super) new: u64,
    /// Ids that Redis lost, and that no instance has any more.
    pub(super) lost: u64,
    /// In how many shards Redis got this instance's [part](super::replay).
    pub(super) parts: u64,
}

impl WindowStats {
    /// Of an instance whose stats are gone: ids may be missing.
    pub(super) const UNKNOWN: Self = Self { accepted: 0, new: 0, lost: 1, parts: 0 };

    /// Reads `<accepted> <new> <lost> <parts>`. Any other text is [`Self::UNKNOWN`].
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
