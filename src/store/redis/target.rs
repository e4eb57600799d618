//! A target: a key that ids are written to, and what this instance knows about the server's copy of it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::hll::{Observation, Sketch};
use crate::redis::slot_of;

/// Where ids go: the key of a shard, a counter, or the names of a bucket, in a window.
pub(super) struct Target {
    /// `PFADD` or `SADD`.
    pub(super) command: &'static str,
    pub(super) key: String,
    /// The slot of the key, if the server is one of a cluster.
    pub(super) slot: u16,
    /// How long the server keeps the key after the last `PEXPIRE`, in milliseconds. It measures that by its own clock:
    /// ours may be wrong.
    pub(super) keep_for: u64,
    /// The epoch of the last `PEXPIRE`; 0 for none.
    expires_since: AtomicU64,
    knowledge: Knowledge,
    /// How many ids the server called new; for `PFADD`, how many writes changed something.
    new: AtomicU64,
    /// A write was not answered. The server may have done it, and then more ids were new than it said.
    in_doubt: AtomicBool,
    /// One more than the [generation](crate::redis::Redis::generation) of the server that answered a write after that; 0 for
    /// none.
    answered_in_doubt: AtomicU64,
    /// One more than the generation of the server that last acknowledged a write; 0 for none.
    acknowledged_by: AtomicU64,
}

/// What the server has of the ids that this instance has.
pub(super) enum Knowledge {
    /// It does not matter: every id is sent, and merged once more at the seal.
    Unknown,
    /// These registers. Of the total, with `--redis-writes changed`.
    Registers(Registers),
    /// All, or perhaps not. Of a counter.
    All(All),
}

/// Whether a server has all that was written to a counter.
#[derive(Default)]
pub(super) struct All {
    /// Writes that have begun and not ended.
    outstanding: AtomicU32,
    /// The epoch in which the server acknowledged all others: 0 for no write, [`MIXED`] if there is none.
    epoch: AtomicU64,
    /// Writes that failed, and losses of the server, since the last merge.
    lacking: AtomicU64,
}

/// What was known of a counter's acknowledged ids when a merge began.
#[derive(Debug, Clone, Copy)]
pub(super) struct BeforeMerge {
    epoch: u64,
    lacking: u64,
}

/// No epoch.
const MIXED: u64 = u64::MAX;

pub(super) struct Registers {
    epoch: AtomicU64,
    known: Sketch,
    /// Held while registers are added, so that no register of an old epoch is added after a new epoch has begun.
    adding: Mutex<()>,
}

impl Target {
    pub(super) fn new(command: &'static str, key: String, keep_for: u64, knowledge: Knowledge) -> Self {
        Self {
            command,
            slot: slot_of(&key),
            key,
            keep_for,
            expires_since: AtomicU64::new(0),
            knowledge,
            new: AtomicU64::new(0),
            in_doubt: AtomicBool::new(false),
            answered_in_doubt: AtomicU64::new(0),
            acknowledged_by: AtomicU64::new(0),
        }
    }

    /// How many ids the server called new.
    pub(super) fn new_ids(&self) -> u64 {
        self.new.load(Ordering::Relaxed)
    }

    /// Notes that a server has answered a write.
    pub(super) fn note_answer(&self, generation: u64) {
        if self.in_doubt.load(Ordering::Relaxed) {
            let none = self.answered_in_doubt.load(Ordering::Relaxed) == 0;
            if none {
                self.answered_in_doubt.store(generation + 1, Ordering::Relaxed);
            }
        }
    }

    /// Notes that a server has acknowledged a write.
    pub(super) fn note_acknowledged(&self, generation: u64) {
        // Nearly always it is there already.
        if self.acknowledged_by.load(Ordering::Relaxed) != generation + 1 {
            self.acknowledged_by.store(generation + 1, Ordering::Relaxed);
        }
    }

    /// Notes that the server may have lost everything. All instances give it again what they have.
    pub(super) fn note_loss(&self) {
        self.acknowledged_by.store(0, Ordering::Relaxed);
        if let Knowledge::All(all) = &self.knowledge {
            all.lacking.fetch_add(1, Ordering::Release);
        }
    }

    /// Whether this server has acknowledged a write, so that the key exists unless something happened to it.
    pub(super) fn must_exist(&self, generation: u64) -> bool {
        self.acknowledged_by.load(Ordering::Relaxed) == generation + 1
    }

    /// Whether a server before this generation may have lost ids unnoticed. It had ids that it never called new, so it may
    /// have lost as many that it acknowledged later.
    ///
    /// A write that stays unanswered because the server dies hides nothing of its connection: it was the last one. It may hide a loss of
    /// another connection: docs/faults.md has that case.
    pub(super) fn may_hide_a_loss(&self, generation: u64) -> bool {
        let answered = self.answered_in_doubt.load(Ordering::Relaxed);
        answered > 0 && answered <= generation
    }

    /// True when the server has acknowledged this in this epoch.
    pub(super) fn has(&self, observation: Observation, epoch: u64) -> bool {
        match &self.knowledge {
            Knowledge::Registers(registers) => {
                registers.epoch.load(Ordering::Acquire) == epoch && registers.known.covers(observation)
            }
            Knowledge::Unknown | Knowledge::All(_) => false,
        }
    }

    /// Notes that a write will be sent. The caller calls this before its ids are in the local sketch: another thread that finds
    /// them there must not believe that the server has them.
    pub(super) fn note_begun(&self) {
        if let Knowledge::All(all) = &self.knowledge {
            all.outstanding.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Notes that a write that had begun is not needed.
    pub(super) fn note_spared(&self) {
        if let Knowledge::All(all) = &self.knowledge {
            all.outstanding.fetch_sub(1, Ordering::Release);
        }
    }

    /// Notes how a write ended that had begun.
    pub(super) fn note_ended(&self, in_epoch: Option<u64>) {
        if let Knowledge::All(all) = &self.knowledge {
            let known = |known| match in_epoch {
                Some(epoch) if known == 0 || known == epoch => Some(epoch),
                _ => Some(MIXED),
            };
            let _ = all.epoch.fetch_update(Ordering::Relaxed, Ordering::Relaxed, known);
            all.lacking.fetch_add(u64::from(in_epoch.is_none()), Ordering::Relaxed);
            all.outstanding.fetch_sub(1, Ordering::Release);
        }
    }

    /// True when the server has acknowledged all writes in this epoch, but for so many that the caller has begun.
    pub(super) fn has_all_but(&self, own: u32, epoch: u64) -> bool {
        match &self.knowledge {
            Knowledge::All(all) => {
                all.outstanding.load(Ordering::Acquire) <= own && all.epoch.load(Ordering::Relaxed) == epoch
            }
            Knowledge::Unknown | Knowledge::Registers(_) => false,
        }
    }

    /// What is known of the acknowledged ids, for [`Self::note_merged`].
    pub(super) fn before_merge(&self) -> BeforeMerge {
        match &self.knowledge {
            Knowledge::All(all) => BeforeMerge {
                epoch: all.epoch.load(Ordering::Acquire),
                lacking: all.lacking.load(Ordering::Acquire),
            },
            Knowledge::Unknown | Knowledge::Registers(_) => BeforeMerge { epoch: 0, lacking: 0 },
        }
    }

    /// Whether writes have failed, or the server may have lost ids, since the last merge.
    pub(super) fn is_lacking(&self) -> bool {
        matches!(&self.knowledge, Knowledge::All(all) if all.lacking.load(Ordering::Acquire) > 0)
    }

    /// Notes that the server got all ids at once. The caller read them after it read what was known [before](Self::before_merge).
    /// If a write has failed since, the server may lack its ids.
    pub(super) fn note_merged(&self, before: BeforeMerge, epoch: u64) {
        if let Knowledge::All(all) = &self.knowledge {
            all.lacking.fetch_sub(before.lacking, Ordering::Relaxed);
            let _ = all.epoch.compare_exchange(before.epoch, epoch, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Whether the target remembers what is acknowledged of single ids.
    pub(super) fn remembers_registers(&self) -> bool {
        matches!(self.knowledge, Knowledge::Registers(_))
    }

    /// Notes what the server has by the answer to a batch.
    pub(super) fn note_observed(&self, observed: impl Iterator<Item = Observation>, epoch: u64) {
        if let Knowledge::Registers(known) = &self.knowledge {
            known.add(observed, epoch);
        }
    }

    /// True when this is the first `PEXPIRE` of the epoch.
    pub(super) fn must_expire(&self, epoch: u64) -> bool {
        self.expires_since.swap(epoch, Ordering::Relaxed) != epoch
    }

    /// Notes how many ids the server called new.
    pub(super) fn note_new(&self, ids: u64) {
        self.new.fetch_add(ids, Ordering::Relaxed);
    }

    /// Forgets how many ids the server called new, because it may have lost all.
    pub(super) fn forget_new(&self) {
        self.new.store(0, Ordering::Relaxed);
    }

    /// Notes that a write was sent and not answered.
    pub(super) fn note_doubt(&self) {
        self.in_doubt.store(true, Ordering::Relaxed);
    }
}

impl Registers {
    pub(super) fn new() -> Self {
        Self { epoch: AtomicU64::new(0), known: Sketch::new(), adding: Mutex::default() }
    }

    /// Notes that the server has these.
    fn add(&self, observed: impl Iterator<Item = Observation>, epoch: u64) {
        let _adding = self.adding.lock();
        let known = self.epoch.load(Ordering::Relaxed);
        if known > epoch {
            return;
        }
        if known < epoch {
            self.known.clear();
            // A thread that sees the new epoch sees no register of the old one.
            self.epoch.store(epoch, Ordering::Release);
        }
        for observation in observed {
            self.known.raise(observation);
        }
    }
}
