//! The lease: which instance leads.
//!
//! A key with a time to live holds the id of the leader. An instance that finds the key free takes it, and gets a fencing token
//! that is higher than all before. The leader renews the lease after a third of its time.
//!
//! The publisher sees a term. The term ends one time to live after the *start* of the call that took or renewed the lease, by
//! the monotonic clock. So it ends here before it ends in Redis, however long the answer took. While Redis is away, the term
//! runs out.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::scripts;
use super::term::Term;
use crate::model::timing::{LEASE_LOOKED_AT_EVERY, TIME_FOR_OTHERS};
use crate::platform::unavailable::Unavailable;
use crate::redis::damage;
use crate::redis::keys::Keys;
use crate::redis::{Call, Redis};

/// Competes for the lease.
pub struct Lease {
    redis: Redis,
    keys: Keys,
    instance_id: String,
    ttl: Duration,
    term: watch::Sender<Option<Term>>,
    leader: watch::Sender<Option<String>>,
}

impl Lease {
    /// Competes for the instance with this id.
    pub fn new(redis: &Redis, keys: Keys, instance_id: String, ttl: Duration) -> Self {
        Self {
            redis: redis.another(),
            keys,
            instance_id,
            ttl,
            term: watch::channel(None).0,
            leader: watch::channel(None).0,
        }
    }

    /// The term, while this instance has one.
    pub fn term(&self) -> watch::Receiver<Option<Term>> {
        self.term.subscribe()
    }

    /// The id of the leader, as far as this instance knows.
    pub fn leader(&self) -> watch::Receiver<Option<String>> {
        self.leader.subscribe()
    }

    /// Asks Redis for the id of the leader.
    ///
    /// # Errors
    ///
    /// [`Unavailable`].
    pub async fn current_leader(&self) -> Result<Option<String>, Unavailable> {
        let mut get = ::redis::cmd("GET");
        get.arg(self.keys.lease());
        self.redis
            .run(Call::Ask, &self.keys.lease(), async |connection| get.query_async(connection).await)
            .await
    }

    /// Takes the lease and renews it until `stop`, then releases it.
    pub async fn run(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let pause = self.round().await;
            let held = self.term.borrow().clone();
            let given_up = async {
                match held {
                    Some(term) => term.given_up().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = given_up => {}
                () = stop.cancelled() => {}
            }
        }
        self.know_leader(None);
        let term = self.term.send_replace(None);
        if let Some(term) = term {
            term.revoke();
            if let Err(error) = self.release().await {
                warn!(%error, "cannot give up the lease; it runs out by itself");
            }
        }
    }

    /// Takes or renews the lease once. Returns how long to wait until the next round.
    async fn round(&self) -> Duration {
        let held = self.term.borrow().clone();
        if let Some(term) = &held
            && term.is_given_up()
        {
            self.term.send_replace(None);
            self.know_leader(None);
            if let Err(error) = self.release().await {
                debug!(%error, "cannot give up the lease; it runs out by itself");
            }
            return self.ttl.min(TIME_FOR_OTHERS);
        }
        let step = match held {
            Some(term) => self.renew(&term).await,
            None => self.take().await,
        };
        step.unwrap_or_else(|error| {
            debug!(%error, "cannot take or renew the lease");
            let held = self.term.borrow().clone();
            match held {
                Some(term) if term.is_valid() => {}
                Some(term) => self.lose(&term),
                None => self.know_leader(None),
            }
            self.ttl / 6
        })
    }

    fn lose(&self, term: &Term) {
        term.revoke();
        self.term.send_replace(None);
        self.know_leader(None);
    }

    fn know_leader(&self, leader: Option<String>) {
        self.leader.send_if_modified(|known| {
            let modified = *known != leader;
            *known = leader;
            modified
        });
    }

    async fn take(&self) -> Result<Duration, Unavailable> {
        let mut call = scripts::TAKE_LEASE.prepare_invoke();
        let (lease, token) = (self.keys.lease(), self.keys.token());
        call.key(&lease).key(&token).key(Keys::damaged(&lease)).key(Keys::damaged(&token));
        call.arg(&self.instance_id).arg(self.ttl.as_millis() as u64).arg(damage::KEPT);
        let asked = Instant::now();
        let (outcome, number, leader, aside): (String, i64, String, String) = self
            .redis
            .run(Call::Lease, &self.keys.lease(), async |connection| call.invoke_async(connection).await)
            .await?;
        if let Some((key, found)) = aside.rsplit_once(' ') {
            damage::say(key, found);
        }
        let number = number.unsigned_abs();
        self.know_leader(Some(leader));
        if outcome == "taken" {
            self.term.send_replace(Some(Term::until(number, asked + self.ttl)));
            return Ok(self.ttl / 3);
        }
        // One millisecond more, so that the other instance's lease has ended by then.
        Ok(Duration::from_millis(number.saturating_add(1)).min(LEASE_LOOKED_AT_EVERY))
    }

    async fn renew(&self, term: &Term) -> Result<Duration, Unavailable> {
        let mut call = scripts::RENEW_LEASE.prepare_invoke();
        call.key(self.keys.lease()).key(self.keys.token());
        call.arg(&self.instance_id).arg(term.token()).arg(self.ttl.as_millis() as u64);
        let asked = Instant::now();
        let renewed: bool = self
            .redis
            .run(Call::Lease, &self.keys.lease(), async |connection| call.invoke_async(connection).await)
            .await?;
        // When Redis fences the publisher, the publisher revokes the term. A renewal must not revive it.
        if renewed && term.is_valid() {
            term.extend(asked + self.ttl);
            return Ok(self.ttl / 3);
        }
        if !term.is_given_up() {
            warn!(fencing_token = term.token(), "the lease is lost");
            self.lose(term);
        }
        Ok(Duration::ZERO)
    }

    async fn release(&self) -> Result<(), Unavailable> {
        let mut call = scripts::RELEASE_LEASE.prepare_invoke();
        call.key(self.keys.lease()).arg(&self.instance_id);
        let _: bool = self
            .redis
            .run(Call::Lease, &self.keys.lease(), async |connection| call.invoke_async(connection).await)
            .await?;
        Ok(())
    }
}
