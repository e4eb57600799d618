//! Test doubles for what no real part does on demand: a clock that the test sets, a sink that fails.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use headcount::coordination::ClosedWindow;
use headcount::coordination::term::Term;
use headcount::model::window::{Clock, WindowCount};
use headcount::publish::sinks::{CountSink, SinkError};

/// A clock that shows the time that the test set, and counts how often it is read.
#[derive(Clone)]
pub struct ManualClock {
    now: Arc<Mutex<SystemTime>>,
    reads: Arc<AtomicU64>,
}

impl ManualClock {
    /// A clock at `seconds` after 1970.
    pub fn at(seconds: f64) -> Self {
        let now = UNIX_EPOCH + Duration::from_secs_f64(seconds);
        Self { now: Arc::new(Mutex::new(now)), reads: Arc::default() }
    }

    pub fn set(&self, seconds: f64) {
        *self.now.lock().unwrap() = UNIX_EPOCH + Duration::from_secs_f64(seconds);
    }

    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }
}

impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        self.reads.fetch_add(1, Ordering::Relaxed);
        *self.now.lock().unwrap()
    }
}

/// A sink that keeps what it gets, and fails as often as the test demands.
#[derive(Clone)]
pub struct TestSink {
    name: &'static str,
    pub taken: Arc<Mutex<Vec<WindowCount>>>,
    pub refusals: Arc<Mutex<u32>>,
}

impl TestSink {
    pub fn new(name: &'static str) -> Self {
        Self { name, taken: Arc::default(), refusals: Arc::default() }
    }

    pub fn taken(&self) -> Vec<WindowCount> {
        self.taken.lock().unwrap().clone()
    }

    pub fn refuse(&self, times: u32) {
        *self.refusals.lock().unwrap() = times;
    }
}

#[async_trait]
impl CountSink for TestSink {
    fn name(&self) -> &'static str {
        self.name
    }

    async fn publish(&mut self, window: &ClosedWindow, _term: &Term) -> Result<(), SinkError> {
        let mut refusals = self.refusals.lock().unwrap();
        if *refusals > 0 {
            *refusals -= 1;
            return Err(SinkError::unavailable("refused by the test"));
        }
        self.taken.lock().unwrap().push(window.count);
        Ok(())
    }
}
