//! The scripts. Nearly all read and write in one step: between two steps another instance could take the lease, open a window,
//! or be taken for dead. The first lines of each say why it is a script.

use std::sync::LazyLock;

use ::redis::Script;

use crate::model::timing::{A_YEAR, FRESH, GRACE, LIVES};

pub(super) static TAKE_LEASE: LazyLock<Script> = LazyLock::new(|| script(include_str!("take_lease.lua")));
pub(super) static RENEW_LEASE: LazyLock<Script> = LazyLock::new(|| script(include_str!("renew_lease.lua")));
pub(super) static RELEASE_LEASE: LazyLock<Script> =
    LazyLock::new(|| script(include_str!("release_lease.lua")));
pub(super) static HEARTBEAT: LazyLock<Script> = LazyLock::new(|| script(include_str!("heartbeat.lua")));
pub(super) static MEMBERSHIP: LazyLock<Script> = LazyLock::new(|| script(include_str!("membership.lua")));
pub(super) static LEAVE: LazyLock<Script> = LazyLock::new(|| script(include_str!("leave.lua")));
pub(super) static CLOSE: LazyLock<Script> = LazyLock::new(|| script(include_str!("close.lua")));
/// Notes that a window was merged into its hour and day, if the token is the newest.
pub static ROLL_UP: LazyLock<Script> = LazyLock::new(|| script(include_str!("roll_up.lua")));
/// Commits the published position, if the token is the newest.
pub static COMMIT_PUBLISHED: LazyLock<Script> =
    LazyLock::new(|| script(include_str!("commit_published.lua")));

/// Each script starts with the durations and functions that all scripts share.
fn script(text: &str) -> Script {
    let [fresh, lives, grace, a_year] = [FRESH, LIVES, GRACE, A_YEAR].map(|duration| duration.as_micros());
    let durations = format!("local FRESH, LIVES, GRACE, A_YEAR = {fresh}, {lives}, {grace}, {a_year}\n");
    Script::new(&(durations + include_str!("shared.lua") + text))
}
