//! The window table: which windows are open on this instance, which are sealed, and what this instance has of them.
//!
//! Both stores have one. They say what an open window holds, and what stays of a sealed one.
//!
//! # The seam between two windows
//!
//! An addition holds the read half of a lock from looking at the watermark until it has entered its window. A seal
//! moves the watermark under the write half. So when the watermark has moved, every addition to the windows before it
//! has entered, and later ones are refused: no id slips in between a window's count and its end.
//!
//! The store chooses what to do under the read half. In memory, the addition adds all its ids before it frees the lock.
//! With Redis, the addition takes a token, and the seal waits for all tokens after it has moved the watermark.
//!
//! Behind the lock, additions do not wait for each other: the registers of a sketch are atomics, and exact ids
//! are spread over many sets with a lock each.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::answers::{AddError, CountError};
use crate::model::window::Window;

/// `W` is what an open window holds, `S` what stays of a sealed one until it is evicted.
pub(super) struct WindowTable<W, S> {
    state: RwLock<State<W, S>>,
}

struct State<W, S> {
    /// The oldest window that is not sealed; every window is open before the first seal.
    watermark: Option<Window>,
    /// Windows at or past the watermark, and those that are being sealed.
    open: BTreeMap<Window, Arc<W>>,
    /// Windows before the watermark for which [`WindowTable::note_sealed`] was called.
    sealed: BTreeMap<Window, S>,
    /// The last window that was evicted.
    evicted: Option<Window>,
    /// The last window that was given up while it was open.
    given_up: Option<Window>,
}

/// A window that is in the table.
pub(super) enum Entry<W, S> {
    Open(Arc<W>),
    Sealed(S),
}

impl<W, S> Default for WindowTable<W, S> {
    fn default() -> Self {
        let (open, sealed) = (BTreeMap::new(), BTreeMap::new());
        Self { state: RwLock::new(State { watermark: None, open, sealed, evicted: None, given_up: None }) }
    }
}

impl<W, S: Clone> WindowTable<W, S> {
    /// Adds to a window, under the read half of the lock. `new` makes a window that is not in the table.
    pub(super) fn enter<T>(
        &self,
        window: Window,
        new: impl Fn() -> W,
        add: impl FnOnce(&Arc<W>) -> T,
    ) -> Result<T, AddError> {
        loop {
            let state = self.state.read();
            if let Some(open) = state.watermark
                && window < open
            {
                return Err(AddError::Sealed { open });
            }
            if let Some(entry) = state.open.get(&window) {
                return Ok(add(entry));
            }
            drop(state);
            // Made before the lock is taken, and dropped if another caller was faster.
            let new = Arc::new(new());
            let mut state = self.state.write();
            if state.watermark.is_none_or(|open| open <= window) {
                state.open.entry(window).or_insert(new);
            }
        }
    }

    /// Moves the watermark past a window: no addition enters it, or a window before it, any more. Returns those that were
    /// open, oldest first. For each, [`Self::note_sealed`] ends its seal.
    pub(super) fn close_up_to(&self, window: Window) -> Vec<(Window, Arc<W>)> {
        let mut state = self.state.write();
        state.watermark = state.watermark.max(Some(window.next()));
        state.open.range(..=window).map(|(window, open)| (*window, Arc::clone(open))).collect()
    }

    /// Keeps what stays of a sealed window.
    pub(super) fn note_sealed(&self, window: Window, sealed: S) {
        let mut state = self.state.write();
        let open = state.open.remove(&window);
        let before = if state.evicted < Some(window) { state.sealed.insert(window, sealed) } else { None };
        // Their counters may be many, so they are freed without the lock, for which all additions would wait.
        drop(state);
        drop((open, before));
    }

    /// Evicts a window and all before it. Returns those that were sealed.
    pub(super) fn evict(&self, window: Window) -> Vec<Window> {
        let mut state = self.state.write();
        state.evicted = state.evicted.max(Some(window));
        let kept = state.sealed.split_off(&window.next());
        let evicted = std::mem::replace(&mut state.sealed, kept);
        // Freed without the lock.
        drop(state);
        evicted.into_keys().collect()
    }

    /// # Errors
    ///
    /// [`CountError::Evicted`]. That a window is old does not make it evicted: the clock may have been set.
    pub(super) fn get(&self, window: Window) -> Result<Option<Entry<W, S>>, CountError> {
        let state = self.state.read();
        if state.evicted >= Some(window) {
            return Err(CountError::Evicted(window));
        }
        let sealed = state.sealed.get(&window).map(|sealed| Entry::Sealed(sealed.clone()));
        Ok(sealed.or_else(|| state.open.get(&window).map(|open| Entry::Open(Arc::clone(open)))))
    }

    /// Windows that are not sealed, oldest first.
    pub(super) fn open(&self) -> Vec<(Window, Arc<W>)> {
        self.state.read().open.iter().map(|(window, open)| (*window, Arc::clone(open))).collect()
    }

    /// Windows that are sealed and not evicted, oldest first.
    pub(super) fn sealed(&self) -> Vec<(Window, S)> {
        self.state.read().sealed.iter().map(|(window, sealed)| (*window, sealed.clone())).collect()
    }

    /// Windows without any addition after the last sealed one, up to `window`: the newest `most` of them, oldest first.
    pub(super) fn unopened_up_to(&self, window: Window, most: usize) -> Vec<Window> {
        let state = self.state.read();
        let sealed = state.sealed.last_key_value().map(|(newest, _)| *newest);
        // Windows that were given up had ids.
        let sealed = sealed.max(state.evicted).max(state.given_up);
        // An instance that has just started has no part in earlier windows.
        let after = sealed.unwrap_or_else(|| window.previous());
        let back = std::iter::successors(Some(window), |window| Some(window.previous()));
        let unopened =
            back.take_while(|window| *window > after).filter(|window| !state.open.contains_key(window));
        let mut newest: Vec<_> = unopened.take(most).collect();
        newest.reverse();
        newest
    }

    /// Makes room for one more open window: only the newest `most` open and the newest `most` sealed windows stay. Returns
    /// the open ones that are given up. Their age does not matter: the clock may have been set.
    pub(super) fn make_room(&self, most: usize) -> Vec<(Window, Arc<W>)> {
        let mut state = self.state.write();
        let (mut dropped, mut given_up) = (Vec::new(), Vec::new());
        while state.sealed.len() > most {
            dropped.extend(state.sealed.pop_first());
        }
        while state.open.len() >= most
            && let Some(oldest) = state.open.pop_first()
        {
            state.given_up = state.given_up.max(Some(oldest.0));
            given_up.push(oldest);
        }
        // Freed without the lock.
        drop(state);
        drop(dropped);
        given_up
    }
}
