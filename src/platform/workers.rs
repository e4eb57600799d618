//! Threads that serve requests, each by itself.
//!
//! A connection stays on the thread that it was given to. So do its timers, and the pipeline to Redis that its requests use. A
//! runtime whose threads take tasks from each other suits a few tasks with much work. Requests have little work, all of the same
//! kind: there the threads would mostly wake each other up. With a pipeline between them, two threads that shared their tasks
//! took a quarter more time for a request than one (see docs/design-decisions.md).
//!
//! Everything that is not on the path of a request runs elsewhere.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

thread_local! {
    static NUMBER: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The threads. They end when this is dropped, and what still runs on them is dropped there.
pub struct Workers {
    workers: Vec<Worker>,
    stop: CancellationToken,
}

struct Worker {
    handle: Handle,
    connections: Arc<AtomicUsize>,
}

impl Workers {
    /// Starts this many threads, at least one.
    ///
    /// # Errors
    ///
    /// When the system has no more threads or file descriptors.
    pub fn start(threads: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let workers =
            (0..threads.max(1)).map(|number| start(number, stop.clone())).collect::<io::Result<_>>();
        Ok(Self { workers: workers?, stop })
    }

    pub(crate) fn count(&self) -> usize {
        self.workers.len()
    }

    /// Runs a future on one of the threads.
    pub fn spawn_on<F>(&self, number: usize, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        self.workers[number].handle.spawn(future)
    }

    /// Waits until each of the threads has taken a new task. False if one has ended.
    pub(crate) async fn all_respond(&self) -> bool {
        for number in 0..self.count() {
            if self.spawn_on(number, async {}).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Serves a connection on the thread that has the fewest. `serve` keeps its [`Seat`] until the connection ends.
    pub(crate) fn spawn_connection<F>(&self, serve: impl FnOnce(Seat) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let of = |worker: &&Worker| worker.connections.load(Ordering::Relaxed);
        let Some(worker) = self.workers.iter().min_by_key(of) else { return };
        worker.connections.fetch_add(1, Ordering::Relaxed);
        worker.handle.spawn(serve(Seat(Arc::clone(&worker.connections))));
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Counts a connection on its worker, until it is dropped.
pub struct Seat(Arc<AtomicUsize>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn start(number: usize, stop: CancellationToken) -> io::Result<Worker> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
        NUMBER.set(Some(number));
        runtime.block_on(stop.cancelled());
        // Threads that hang in a system call are abandoned.
        runtime.shutdown_background();
    })?;
    Ok(Worker { handle, connections: Arc::default() })
}

/// How many threads can run at a time.
pub(crate) fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// The number of the worker that the caller runs on; none elsewhere.
pub(crate) fn current() -> Option<usize> {
    NUMBER.get()
}
