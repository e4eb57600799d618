//! The script that belongs to no protocol.

use std::sync::LazyLock;

use ::redis::Script;

/// Puts aside what is found where a key of a window belongs, if it is of no use.
pub static PUT_ASIDE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("put_aside.lua")));
