//! The counters of an open window in Redis: what this instance added to each, and which of these ids are pending.
//!
//! A counter has one key, and the sets of names of 64 buckets say which counters there are. An id goes first into the local sketch
//! of its counter and then into the counter's key, beside the total's. A name goes into the set of its bucket when this instance
//! first writes to the counter, and once more when the server may be another one (a new [epoch](super::pipeline)).
//!
//! At the seal, the total is always merged. Counters may be many, so a counter is merged only if Redis does not have all its
//! ids. Those of which it should have all are read back.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::batch::{Receipt, Receipts};
use super::config::{IDS_A_COMMAND, RedisStoreConfig};
use super::pending::PendingIds;
use super::pipelines::Pipelines;
use super::stats::{BucketStats, CounterStats};
use super::target::{All, BeforeMerge, Knowledge, Target};
use crate::hll::{GrowingSketch, Observation, Sketch};
use crate::model::counter::{BUCKETS, CounterNames, OTHER, bucket_of};
use crate::model::id::{Id, TextId};
use crate::model::mode::Mode;
use crate::model::window::Window;
use crate::platform::budget::{Budget, Share};
use crate::platform::unavailable::Unavailable;
use crate::store::places::{Before, Names, Places};

/// What a counter takes beside its name, its key and its sketch.
const BYTES_A_COUNTER: usize = 480;
/// What a pending exact id takes beside its bytes, at most.
const BYTES_AN_ID: usize = 56;

/// The counters of a window.
pub(super) struct LocalCounters {
    config: Arc<RedisStoreConfig>,
    window: Window,
    places: Arc<Places<Arc<LocalCounter>>>,
    /// Made with the window: an id always finds room there.
    other: Arc<LocalCounter>,
    /// The sets of names, once a counter was named.
    names: OnceLock<Box<[Arc<Target>]>>,
    pending: Arc<PendingIds>,
    /// Buckets of which Redis lacked ids or names at the last seal.
    lacking: Mutex<BTreeSet<usize>>,
    /// The counters were given up.
    are_given_up: AtomicBool,
}

/// This instance's part of a counter.
pub(super) struct LocalCounter {
    pub(super) name: Box<str>,
    pub(super) bucket: usize,
    pub(super) target: Arc<Target>,
    pub(super) ids: CounterIds,
    /// The epoch in which Redis acknowledged the name; 0 for none.
    listed: AtomicU64,
    /// An id was added.
    is_touched: AtomicBool,
    /// In mode `hll`, how many ids of the sketch are pending.
    unmerged: AtomicU64,
    /// How many replayed exact ids Redis called new.
    replayed_new: AtomicU64,
    /// Redis lost ids of it, perhaps unnoticed, or its key held something else.
    is_damaged: AtomicBool,
}

/// In mode `hll` all ids of the counter; in mode `exact` the pending ones.
pub(super) enum CounterIds {
    Hll(GrowingSketch),
    Exact(Mutex<HashSet<TextId>>),
}

/// Whether each of some ids is in all its counters.
type InAll = SmallVec<[bool; 1]>;

/// What was put into the pipeline for the counters of a request.
#[derive(Default)]
pub(super) struct Sent {
    pub(super) receipts: Receipts,
    /// How many ids were counted in `_other`.
    pub(super) overflow: u64,
    /// Counters whose names were sent, in this epoch.
    listed: SmallVec<[(Arc<LocalCounter>, u64); 1]>,
}

impl Sent {
    /// Notes that Redis acknowledged all of it.
    pub(super) fn note_acknowledged(&self) {
        for (counter, epoch) in &self.listed {
            counter.listed.store(*epoch, Ordering::Relaxed);
        }
    }
}

impl LocalCounters {
    pub(super) fn new(
        config: &Arc<RedisStoreConfig>,
        window: Window,
        memory: &Arc<Budget>,
        before: Before,
        pending: &Arc<PendingIds>,
    ) -> Self {
        let places = Places::new(window, config.counters.most, memory, before);
        Self {
            config: Arc::clone(config),
            window,
            places: Arc::new(places),
            other: Arc::new(LocalCounter::new(config, window, OTHER)),
            names: OnceLock::new(),
            pending: Arc::clone(pending),
            lacking: Mutex::default(),
            are_given_up: AtomicBool::new(false),
        }
    }

    /// Notes of which buckets Redis lacks ids or names at a seal.
    pub(super) fn note_lacking(&self, buckets: &[usize]) {
        *self.lacking.lock() = buckets.iter().copied().collect();
    }

    /// The names, for the next window.
    pub(super) fn as_before(&self) -> Before {
        Before::open(&self.places)
    }

    /// Notes that the window is sealed. Returns the names, which outlive what else is kept of it.
    pub(super) fn note_sealed(&self) -> Arc<dyn Names> {
        let names = self.places.all(|name, counter| counter.is_touched().then(|| name.into()));
        let names: Arc<dyn Names> = Arc::new(names.into_iter().collect::<HashSet<Box<str>>>());
        self.places.note_sealed(Arc::clone(&names));
        names
    }

    /// Whether there are counters that clients named, and that were not given up.
    pub(super) fn has_some(&self) -> bool {
        self.places.count() > 0
    }

    /// Frees the counters of a closed window, slowly: an allocator that is busy holds up threads that serve requests. If Redis loses
    /// them and their counts before those are published, they are lost.
    pub(super) fn give_up(&self) {
        self.are_given_up.store(true, Ordering::Relaxed);
        // Of a window that was closed while a server was away, some may be pending.
        self.give_up_pending();
        let names = self.places.all(|name, _| Some(Box::<str>::from(name)));
        self.places.free(names.iter().map(|name| &**name));
        self.places.share().give_all();
    }

    /// Gives up the exact ids that are still pending.
    fn give_up_pending(&self) {
        for counter in self.all() {
            if let CounterIds::Exact(pending) = &counter.ids {
                let given_up = std::mem::take(&mut *pending.lock());
                self.pending.release(given_up.len() as u64);
            }
        }
    }

    /// Looks up the counters of a request. `then` gets them, and whether all have a place.
    fn with<T>(&self, names: &CounterNames<'_>, then: impl FnOnce(&[&Arc<LocalCounter>], bool) -> T) -> T {
        let (config, window) = (&self.config, self.window);
        let bytes = |name: &str| BYTES_A_COUNTER + config.keys.namespace().len() + 2 * name.len();
        self.places.with(names, bytes, |name| Arc::new(LocalCounter::new(config, window, name)), then)
    }

    /// Adds ids to the local sketches of counters, and puts what Redis does not have into the pipeline.
    pub(super) fn send<I: Id>(
        &self,
        ids: &[I],
        names: &CounterNames<'_>,
        pipelines: &Pipelines,
        under_way: &TaskTrackerToken,
    ) -> Result<Sent, Unavailable> {
        let sending = Sending { counters: self, pipelines, under_way };
        self.with(names, |counters, all_have_a_place| {
            let mut sent = Sent::default();
            let mut in_all = InAll::from_elem(all_have_a_place, ids.len());
            for counter in counters {
                sending.send(counter, ids.iter().map(AsRef::as_ref), Some(&mut in_all), &mut sent)?;
            }
            let overflow = ids.iter().zip(&in_all).filter(|(_, is_in_all)| !**is_in_all);
            let overflow: SmallVec<[&[u8]; 1]> = overflow.map(|(id, _)| id.as_ref()).collect();
            if !overflow.is_empty() {
                sending.send(&self.other, overflow.iter().copied(), None, &mut sent)?;
            }
            sent.overflow = overflow.len() as u64;
            Ok(sent)
        })
    }

    /// Keeps ids until Redis has them; it may have some already. Returns how many more exact ids are
    /// pending, for which the caller has reserved room, and how many ids were counted in `_other`.
    pub(super) fn keep<I: Id>(&self, ids: &[I], names: &CounterNames<'_>) -> (u64, u64) {
        let share = self.places.share();
        self.with(names, |counters, all_have_a_place| {
            let (mut kept, mut overflow) = (0, 0);
            for id in ids.iter().map(AsRef::as_ref) {
                let mut is_in_all = all_have_a_place;
                for counter in counters {
                    match counter.keep(id, Some(share)) {
                        Some(is_new) => kept += u64::from(is_new),
                        None => is_in_all = false,
                    }
                }
                if !is_in_all {
                    kept += u64::from(self.other.keep(id, None).unwrap_or_default());
                    overflow += 1;
                }
            }
            (kept, overflow)
        })
    }

    /// Merges a sketch into the local ones of counters. Redis lacks it until it is replayed. Returns how many of its ids were counted
    /// in `_other`: none or all. The caller sees to it that nothing is replayed meanwhile.
    pub(super) fn import(&self, sketch: &Sketch, names: &CounterNames<'_>) -> u64 {
        let share = self.places.share();
        let is_in_all = self.with(names, |counters, all_have_a_place| {
            counters.iter().fold(all_have_a_place, |is_in_all, counter| {
                counter.import(sketch, |bytes| share.take(bytes)) && is_in_all
            })
        });
        if is_in_all {
            return 0;
        }
        self.other.import(sketch, |_| true);
        let overflow = sketch.estimate();
        self.places.note_overflow(overflow);
        overflow
    }

    /// Notes ids that were counted in `_other`.
    pub(super) fn note_overflow(&self, ids: u64) {
        self.places.note_overflow(ids);
    }

    /// How many of these exact ids are not pending yet, over all these counters.
    pub(super) fn not_pending<I: Id>(&self, ids: &[I], names: &CounterNames<'_>) -> u64 {
        self.with(names, |counters, all_have_a_place| {
            let other = Some(&self.other).filter(|_| !all_have_a_place);
            let lacking = |counter: &Arc<LocalCounter>| {
                let CounterIds::Exact(pending) = &counter.ids else { return 0 };
                let pending = pending.lock();
                ids.iter().filter(|id| !pending.contains(id.as_ref())).count() as u64
            };
            counters.iter().copied().chain(other).map(lacking).sum()
        })
    }

    /// All counters that were written to.
    pub(super) fn all(&self) -> Vec<Arc<LocalCounter>> {
        let named = self.places.all(|_, counter| Some(Arc::clone(counter)));
        let all = named.into_iter().chain([Arc::clone(&self.other)]);
        all.filter(|counter| counter.is_touched()).collect()
    }

    /// What this instance stores at the seal.
    pub(super) fn stats(&self) -> CounterStats {
        let mut buckets = BTreeMap::<usize, BucketStats>::new();
        for counter in self.all() {
            let bucket = buckets.entry(counter.bucket).or_default();
            bucket.names = self.names_of(counter.bucket).new_ids();
            if let CounterIds::Exact(_) = &counter.ids {
                bucket.ids += counter.new_ids();
            }
            if counter.is_damaged.load(Ordering::Relaxed) {
                bucket.note_damage(&counter.name);
            }
        }
        for bucket in &*self.lacking.lock() {
            buckets.entry(*bucket).or_default().lost = true;
        }
        let lost = self.are_given_up.load(Ordering::Relaxed);
        CounterStats { overflow: self.places.overflow_ids(), buckets, lost }
    }

    /// Notes that Redis has these pending exact ids of a counter, and its name.
    pub(super) fn note_replayed(&self, counter: &LocalCounter, ids: &[TextId], new: u64, epoch: u64) {
        let removed = counter.note_replayed(ids, new, epoch);
        self.pending.release(removed.len() as u64);
        // Ids of `_other` have taken none.
        if *counter.name != *OTHER {
            self.places.share().give(removed.iter().map(|id| BYTES_AN_ID + id.as_bytes().len()).sum());
        }
    }

    /// Notes that the server may have lost something, and is of this generation now.
    pub(super) fn note_loss(&self, generation: u64) {
        // Every name is sent once more, in the new epoch. Then those count that the server calls new.
        self.names.get().into_iter().flatten().for_each(|names| names.forget_new());
        for counter in self.all() {
            counter.target.note_loss();
            if let CounterIds::Exact(_) = &counter.ids
                && counter.target.may_hide_a_loss(generation)
            {
                counter.note_damage();
            }
        }
    }

    /// The target of the names of a bucket.
    pub(super) fn names_of(&self, bucket: usize) -> &Arc<Target> {
        let make = |bucket| {
            let key = self.config.keys.names(bucket, self.window);
            Arc::new(Target::new("SADD", key, self.config.keep_for(self.window), Knowledge::Unknown))
        };
        &self.names.get_or_init(|| (0..BUCKETS).map(make).collect())[bucket]
    }
}

/// How ids of a request go to Redis.
struct Sending<'a> {
    counters: &'a LocalCounters,
    pipelines: &'a Pipelines,
    under_way: &'a TaskTrackerToken,
}

impl Sending<'_> {
    /// Sends ids to a counter. Notes in `in_all` for which there is no memory; without it there always is.
    fn send<'i>(
        &self,
        counter: &Arc<LocalCounter>,
        ids: impl Iterator<Item = &'i [u8]>,
        mut in_all: Option<&mut InAll>,
        all: &mut Sent,
    ) -> Result<(), Unavailable> {
        let epoch = self.pipelines.epoch();
        let share = self.counters.places.share();
        let spares = self.counters.config.remembers_acknowledged();
        counter.target.note_begun();
        let mut lacking = SmallVec::<[&[u8]; 1]>::new();
        for (place, id) in ids.enumerate() {
            let CounterIds::Hll(sketch) = &counter.ids else {
                lacking.push(id);
                continue;
            };
            let raised =
                sketch.raise_within(Observation::of(id), |bytes| in_all.is_none() || share.take(bytes));
            match (raised, &mut in_all) {
                (None, Some(in_all)) => in_all[place] = false,
                (Some(false), _) if spares && counter.is_in_redis(1, epoch) => {}
                _ => lacking.push(id),
            }
        }
        if lacking.is_empty() {
            counter.target.note_spared();
            return Ok(());
        }
        counter.is_touched.store(true, Ordering::Relaxed);
        let chunks = lacking.chunks(IDS_A_COMMAND);
        // Before the first may be answered.
        (1..chunks.len()).for_each(|_| counter.target.note_begun());
        for some in chunks {
            let sent = self.pipelines.send(&counter.target, some.iter().copied(), self.under_way);
            all.receipts.push(sent.inspect_err(|_| counter.target.note_ended(None))?);
        }
        // Each request sends the name until Redis has it: a request that is answered must not depend on another one.
        if counter.listed.load(Ordering::Relaxed) != epoch {
            all.receipts.push(self.list(counter)?);
            all.listed.push((Arc::clone(counter), epoch));
        }
        Ok(())
    }

    fn list(&self, counter: &LocalCounter) -> Result<Receipt, Unavailable> {
        let names = self.counters.names_of(counter.bucket);
        self.pipelines.send(names, [counter.name.as_bytes()].into_iter(), self.under_way)
    }
}

impl LocalCounter {
    fn new(config: &RedisStoreConfig, window: Window, name: &str) -> Self {
        let (command, ids) = match config.mode {
            Mode::Hll => ("PFADD", CounterIds::Hll(GrowingSketch::default())),
            Mode::Exact => ("SADD", CounterIds::Exact(Mutex::default())),
        };
        let key = config.keys.counter(config.mode, name, window);
        let target = Target::new(command, key, config.keep_for(window), Knowledge::All(All::default()));
        Self {
            name: name.into(),
            bucket: bucket_of(name),
            target: Arc::new(target),
            ids,
            listed: AtomicU64::new(0),
            is_touched: AtomicBool::new(false),
            unmerged: AtomicU64::new(0),
            replayed_new: AtomicU64::new(0),
            is_damaged: AtomicBool::new(false),
        }
    }

    /// Keeps an id. True if it is one more pending exact id; none if there is no memory for it.
    fn keep(&self, id: &[u8], share: Option<&Share>) -> Option<bool> {
        let room = |bytes: usize| share.is_none_or(|share| share.take(bytes));
        let is_new = match &self.ids {
            CounterIds::Hll(sketch) => {
                sketch.raise_within(Observation::of(id), room)?;
                self.unmerged.fetch_add(1, Ordering::Release);
                false
            }
            CounterIds::Exact(pending) => {
                let mut pending = pending.lock();
                let is_new = !pending.contains(id);
                if is_new && !room(BYTES_AN_ID + id.len()) {
                    return None;
                }
                is_new && pending.insert(id.into())
            }
        };
        self.is_touched.store(true, Ordering::Relaxed);
        Some(is_new)
    }

    /// Whether Redis has all ids, but those of so many writes that the caller has begun.
    fn is_in_redis(&self, own: u32, epoch: u64) -> bool {
        // After the registers that the caller has found: see `import`.
        fence(Ordering::Acquire);
        self.target.has_all_but(own, epoch) && self.unmerged() == 0
    }

    /// False if there is no memory for all of a sketch.
    fn import(&self, imported: &Sketch, room: impl Fn(usize) -> bool) -> bool {
        let CounterIds::Hll(sketch) = &self.ids else { return false };
        self.is_touched.store(true, Ordering::Relaxed);
        self.unmerged.fetch_add(1, Ordering::Relaxed);
        // A thread that finds its registers finds this too, and does not believe that Redis has them.
        fence(Ordering::Release);
        sketch.merge_within(imported, room)
    }

    /// Whether Redis may lack some of the ids: it never acknowledged them, or lost everything.
    pub(super) fn is_lacking(&self) -> bool {
        match &self.ids {
            CounterIds::Hll(_) => self.has_pending() || self.target.is_lacking(),
            CounterIds::Exact(_) => self.has_pending(),
        }
    }

    /// Whether ids of it are pending.
    pub(super) fn has_pending(&self) -> bool {
        match &self.ids {
            CounterIds::Hll(_) => self.unmerged() > 0,
            CounterIds::Exact(pending) => !pending.lock().is_empty(),
        }
    }

    /// Whether an id was ever added to it.
    fn is_touched(&self) -> bool {
        self.is_touched.load(Ordering::Relaxed)
    }

    /// How many ids of the sketch are pending. A sketch that is read afterwards has all of them.
    pub(super) fn unmerged(&self) -> u64 {
        self.unmerged.load(Ordering::Acquire)
    }

    /// Notes that Redis has the name, and so many pending ids of the sketch with all before them.
    pub(super) fn note_merged(&self, ids: u64, before: BeforeMerge, epoch: u64) {
        self.unmerged.fetch_sub(ids, Ordering::Relaxed);
        self.target.note_merged(before, epoch);
        self.listed.store(epoch, Ordering::Relaxed);
    }

    /// Notes that Redis has the name, and these pending exact ids. Returns those that are not pending any more.
    fn note_replayed<'a>(&self, ids: &'a [TextId], new: u64, epoch: u64) -> Vec<&'a TextId> {
        self.replayed_new.fetch_add(new, Ordering::Relaxed);
        self.listed.store(epoch, Ordering::Relaxed);
        let CounterIds::Exact(pending) = &self.ids else { return Vec::new() };
        let mut pending = pending.lock();
        let removed = ids.iter().filter(|id| pending.remove(id.as_bytes())).collect();
        if pending.is_empty() {
            // A set does not give its memory back by itself.
            *pending = HashSet::new();
        }
        removed
    }

    /// Notes that Redis lost ids of it, or that its key held something else.
    pub(super) fn note_damage(&self) {
        self.is_damaged.store(true, Ordering::Relaxed);
    }

    /// How many exact ids Redis called new.
    fn new_ids(&self) -> u64 {
        self.target.new_ids() + self.replayed_new.load(Ordering::Relaxed)
    }
}

impl Drop for LocalCounters {
    fn drop(&mut self) {
        self.give_up_pending();
    }
}
