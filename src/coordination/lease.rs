//! The lease: which instance leads.
//!
//! A key with a time to live holds the id of the instance that leads. An instance that finds it free takes it and gets a
//! fencing token that is higher than all before; the leader prolongs it at a third of its time. The term that the publisher
//! sees ends, by the monotonic clock, a whole time to live after the moment *before* the call that took or prolonged the
//! lease: so it ends here before it ends in Redis, however long the answer took. When Redis cannot be asked, the term
//! simply runs out.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::grant::Grant;
use super::scripts;
use crate::model::timing::{LEASE_LOOKED_AT_EVERY, TIME_FOR_OTHERS};
use crate::platform::unavailable::Unavailable;
use crate::redis::damage;
use crate::redis::keys::Keys;
use crate::redis::{Call, Redis};

/// Competes for the lease.
pub struct Lease {
    redis: Redis,
    keys: Keys,
    holder: String,
    ttl: Duration,
    grant: watch::Sender<Option<Grant>>,
    leader: watch::Sender<Option<String>>,
}

impl Lease {
    /// Of the instance with the id `holder`.
    pub fn new(redis: &Redis, keys: Keys, holder: String, ttl: Duration) -> Self {
        Self {
            redis: redis.another(),
            keys,
            holder,
            ttl,
            grant: watch::channel(None).0,
            leader: watch::channel(None).0,
        }
    }

    /// The grant, while there is one.
    pub fn grant(&self) -> watch::Receiver<Option<Grant>> {
        self.grant.subscribe()
    }

    /// The id of the instance that leads, as far as is known here.
    pub fn leader(&self) -> watch::Receiver<Option<String>> {
        self.leader.subscribe()
    }

    /// The id of the instance that leads now, if any.
    ///
    /// # Errors
    ///
    /// [`Unavailable`].
    pub async fn holder(&self) -> Result<Option<String>, Unavailable> {
        let mut get = ::redis::cmd("GET");
        get.arg(self.keys.lease());
        self.redis.run(Call::Ask, async |connection| get.query_async(connection).await).await
    }

    /// Takes, renews and takes anew until `stop`; then gives the lease up.
    pub async fn run(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let pause = self.round().await;
            let held = self.grant.borrow().clone();
            let given_up = async {
                match held {
                    Some(grant) => grant.given_up().await,
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
        let grant = self.grant.send_replace(None);
        if let Some(grant) = grant {
            grant.revoke();
            if let Err(error) = self.release().await {
                warn!(%error, "cannot give up the lease; it runs out by itself");
            }
        }
    }

    /// One step, and how long to wait until the next.
    async fn round(&self) -> Duration {
        let held = self.grant.borrow().clone();
        if let Some(grant) = &held
            && grant.is_given_up()
        {
            self.grant.send_replace(None);
            self.know_leader(None);
            if let Err(error) = self.release().await {
                debug!(%error, "cannot give up the lease; it runs out by itself");
            }
            return self.ttl.min(TIME_FOR_OTHERS);
        }
        let step = match held {
            Some(grant) => self.renew(&grant).await,
            None => self.take().await,
        };
        step.unwrap_or_else(|error| {
            debug!(%error, "cannot ask for the lease");
            let held = self.grant.borrow().clone();
            match held {
                Some(grant) if grant.is_valid() => {}
                Some(grant) => self.lose(&grant),
                None => self.know_leader(None),
            }
            self.ttl / 6
        })
    }

    fn lose(&self, grant: &Grant) {
        grant.revoke();
        self.grant.send_replace(None);
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
        call.arg(&self.holder).arg(self.ttl.as_millis() as u64).arg(damage::KEPT);
        let asked = Instant::now();
        let (outcome, number, leader, aside): (String, i64, String, String) =
            self.redis.run(Call::Lease, async |connection| call.invoke_async(connection).await).await?;
        if let Some((key, found)) = aside.rsplit_once(' ') {
            damage::say(key, found);
        }
        let number = number.unsigned_abs();
        self.know_leader(Some(leader));
        if outcome == "granted" {
            self.grant.send_replace(Some(Grant::until(number, asked + self.ttl)));
            return Ok(self.ttl / 3);
        }
        // A moment more, so that it is over then.
        Ok(Duration::from_millis(number.saturating_add(1)).min(LEASE_LOOKED_AT_EVERY))
    }

    async fn renew(&self, grant: &Grant) -> Result<Duration, Unavailable> {
        let mut call = scripts::RENEW_LEASE.prepare_invoke();
        call.key(self.keys.lease()).key(self.keys.token());
        call.arg(&self.holder).arg(grant.token()).arg(self.ttl.as_millis() as u64);
        let asked = Instant::now();
        let renewed: bool =
            self.redis.run(Call::Lease, async |connection| call.invoke_async(connection).await).await?;
        // A publisher that was told so by Redis has revoked it: that stands.
        if renewed && grant.is_valid() {
            grant.extend(asked + self.ttl);
            return Ok(self.ttl / 3);
        }
        if !grant.is_given_up() {
            warn!(fencing_token = grant.token(), "the lease is lost");
            self.lose(grant);
        }
        Ok(Duration::ZERO)
    }

    async fn release(&self) -> Result<(), Unavailable> {
        let mut call = scripts::RELEASE_LEASE.prepare_invoke();
        call.key(self.keys.lease()).arg(&self.holder);
        let _: bool =
            self.redis.run(Call::Lease, async |connection| call.invoke_async(connection).await).await?;
        Ok(())
    }
}
