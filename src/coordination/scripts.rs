//! The scripts. Each is one because it has to look and to write in one step: between the two, another
//! instance could take the lease, open a window, or lose its place.

use std::sync::LazyLock;

use ::redis::Script;

/// Takes the lease, with a new fencing token, if it is free or the caller's already.
pub static TAKE_LEASE: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("number.lua"), include_str!("take_lease.lua"))));
/// Prolongs the lease, if it is still the caller's under the same token.
pub static RENEW_LEASE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("renew_lease.lua")));
/// Gives the lease up, if it is the caller's.
pub static RELEASE_LEASE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("release_lease.lua")));
/// Takes an instance's report, if it agrees with the others.
pub static REPORT: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("number.lua"), include_str!("report.lua"))));
/// Stores a window's count, if the token is the newest and the window has none.
pub static CLOSE: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("number.lua"), include_str!("close.lua"))));
/// Says goodbye: all that the instance accepted is sealed.
pub static LEAVE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("leave.lua")));
/// Marks windows as published, if the token is the newest.
pub static MARK_PUBLISHED: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("number.lua"), include_str!("mark_published.lua"))));
