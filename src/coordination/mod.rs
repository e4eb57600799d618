//! Coordination: what the instances that share a store have to agree on.
//!
//! An instance sends a *heartbeat* that says how far it has sealed. The *leader*, which is the instance that holds the
//! lease, *closes* windows in order: when every instance has sealed one, it is counted, and the count is stored, once and for
//! all. What has reached every sink is marked as *published*.
//!
//! A leader may be wrong about being one: its process may have been stopped for an hour between two instructions. So every
//! term of the lease comes with a *fencing token* that is higher than all before it. A leader that stores something shows
//! its token, and all tokens but the newest are refused. (Kleppmann, *How to do distributed locking*, 2016.)

mod closed;
pub mod completeness;
mod coordinator;
mod heartbeat;
pub mod lease;
mod membership;
mod presence;
pub mod redis;
pub mod scripts;
pub mod sealer;
mod settings;
mod standalone;
pub mod term;

pub use self::closed::{CloseError, ClosedCounters, ClosedWindows, REMEMBERED, Resume};
pub use self::coordinator::Coordinator;
pub use self::heartbeat::{Heartbeat, HeartbeatAnswer};
pub use self::membership::MembershipView;
pub use self::settings::{HeartbeatError, LAYOUT, Settings};
