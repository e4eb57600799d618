//! Work that takes a long time and is not urgent, on a machine whose cores serve requests.

use std::thread;
use std::time::{Duration, Instant};

/// How long such work goes on before it pauses.
const SLICE: Duration = Duration::from_micros(500);
/// Steps between two looks at the clock.
const STEPS: u32 = 32;

/// Pauses work for as long as it has run, again and again. So it takes at most half of a core, and no request waits long for
/// that core. It blocks its thread.
pub(crate) struct Pace {
    since: Instant,
    steps: u32,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self { since: Instant::now(), steps: 0 }
    }

    /// Counts a step of the work, and pauses if it is time.
    pub(crate) fn step(&mut self) {
        self.steps += 1;
        if !self.steps.is_multiple_of(STEPS) {
            return;
        }
        let ran = self.since.elapsed();
        if ran >= SLICE {
            thread::sleep(ran);
            self.since = Instant::now();
        }
    }
}
