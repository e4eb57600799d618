//! Coordination: what the instances that share a store have to agree on.
//!
//! An instance sends a *heartbeat* that says how far it has sealed. The instance that holds the lease is the *leader*: it
//! *closes* windows in order. When every instance has sealed a window, the leader counts it and stores the count, once and
//! for all. When every sink has the count, the leader commits the window as *published*.
//!
//! An instance may believe that it leads when it does not: its process may have been paused for an hour between two
//! instructions. So every term of the lease has a *fencing token* that is higher than all before. A leader sends its token
//! with each write, and Redis refuses all tokens but the newest. (Kleppmann, *How to do distributed locking*, 2016.)

mod closed;
pub mod completeness;
mod coordinator;
mod heartbeat;
pub mod lease;
mod membership;
mod presence;
pub mod redis;
mod rolled;
pub mod scripts;
pub mod sealer;
mod series;
mod settings;
mod staged;
mod standalone;
pub mod term;

pub use self::closed::{
    CloseError, ClosedCounters, ClosedWindow, ClosedWindows, REMEMBERED, Resume, StoredWindow, WindowCounters,
};
pub use self::coordinator::Coordinator;
pub use self::heartbeat::{Heartbeat, HeartbeatAnswer};
pub use self::membership::MembershipView;
pub use self::rolled::{Buckets, Rolled, RolledInto, RolledPeriod, RolledWindow};
pub use self::series::{KeptSeries, PastCount};
pub use self::settings::{HeartbeatError, LAYOUT, Settings};
pub use self::staged::StoredCounters;
