//! The scripts. Each is one because it has to look and to write in one step: between the two, another instance could take
//! the lease, open a window, or lose its place. Each says so in its first lines.

use std::sync::LazyLock;

use ::redis::Script;

/// A script, after the functions that it uses.
macro_rules! script {
    ($($file:literal),+) => {
        LazyLock::new(|| Script::new(concat!($(include_str!($file)),+)))
    };
}

pub(super) static TAKE_LEASE: LazyLock<Script> = script!("number.lua", "take_lease.lua");
pub(super) static RENEW_LEASE: LazyLock<Script> = script!("renew_lease.lua");
pub(super) static RELEASE_LEASE: LazyLock<Script> = script!("release_lease.lua");
pub(super) static HEARTBEAT: LazyLock<Script> = script!("number.lua", "heartbeats.lua", "heartbeat.lua");
pub(super) static MEMBERSHIP: LazyLock<Script> = script!("number.lua", "heartbeats.lua", "membership.lua");
pub(super) static LEAVE: LazyLock<Script> = script!("leave.lua");
pub(super) static CLOSE: LazyLock<Script> = script!("number.lua", "heartbeats.lua", "close.lua");
/// Marks windows as published, if the token is the newest.
pub static MARK_PUBLISHED: LazyLock<Script> = script!("number.lua", "mark_published.lua");
