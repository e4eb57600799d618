//! A server that has keys of headcount: the only one, or a primary of a cluster.

use std::sync::Arc;

use parking_lot::Mutex;

use super::breaker::Breaker;
use crate::redis::{Node, Writer};

/// What all tasks that use a server share.
pub(super) struct Primary {
    pub(super) node: Arc<Node>,
    pub(super) breaker: Breaker,
    /// The connections of the pipelines to it, with their workers.
    pub(super) writers: Mutex<Vec<(usize, Writer)>>,
}
