//! The values that all parts of the service use: ids, windows, shards, and how ids are counted.

pub mod counter;
pub mod element;
pub mod id;
pub mod id_key;
pub mod id_list;
pub mod mode;
pub mod parts;
pub mod period;
pub mod range;
pub mod shard;
pub(crate) mod timing;
pub mod window;
