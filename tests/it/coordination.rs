//! What the instances share in Redis: fencing tokens, stored counts, and the warnings at the start.

use std::time::{Duration, SystemTime};

use headcount::coordination::lease::Lease;
use headcount::coordination::redis::{RedisCoordinator, RedisCoordinatorConfig};
use headcount::coordination::term::Term;
use headcount::coordination::{CloseError, Heartbeat, KeptSeries, MembershipView, REMEMBERED, Settings};
use headcount::model::counter::CounterCounts;
use headcount::model::id::IdKind;
use headcount::model::mode::Mode;
use headcount::model::shard::Shards;
use headcount::model::window::{Window, WindowCount, WindowLength};
use headcount::redis::keys::Keys;
use headcount::redis::{Address, Redis};
use headcount::telemetry::metrics::Metrics;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::support::redis::{Flavour, Redis as RedisServer};
use crate::support::server::Server;
use crate::support::{PATIENCE, wait_for};

fn window() -> Window {
    "10s".parse::<WindowLength>().unwrap().window_at(SystemTime::now())
}

/// An instance's connection to Redis, without the rest of an instance.
struct Instance {
    name: &'static str,
    redis: Redis,
    coordinator: RedisCoordinator,
}

/// The heartbeat of an instance that has always run and has `window` open.
fn report_of(window: Window) -> Heartbeat {
    Heartbeat {
        watermark: window,
        newest: window,
        since: SystemTime::UNIX_EPOCH,
        interrupted: false,
        pending_ids: 0,
        knows: None,
    }
}

impl Instance {
    fn new(name: &'static str, server: &RedisServer) -> Self {
        let address = Address::parse(&server.url()).unwrap();
        let redis = Redis::new(&address, Duration::from_secs(2), &Metrics::new());
        let config = RedisCoordinatorConfig {
            keys: Keys::new("coordination"),
            instance_id: name.to_owned(),
            window: window().length(),
            retention: Duration::from_secs(600),
            counter_retention: Duration::from_secs(600),
            series: KeptSeries::new(window().length(), Duration::from_secs(86_400)),
            shards: Shards::ONE,
            keep_rolled: Duration::from_secs(86_400),
            settings: Settings::new(IdKind::Integer, Mode::Hll, window().length(), Shards::ONE, None),
        };
        Self { name, coordinator: RedisCoordinator::new(config, &redis), redis }
    }

    async fn has_sealed(&self, window: Window) {
        let report = report_of(window.next());
        assert!(!self.coordinator.heartbeat(&report).await.unwrap().lost);
    }

    /// Takes the lease and then stops, as a killed process does. In this test its term never ends, so only the fencing
    /// token decides.
    async fn lead_and_die(&self) -> Term {
        let ttl = Duration::from_secs(1);
        let lease = Lease::new(&self.redis, Keys::new("coordination"), self.name.to_owned(), ttl);
        let mut term = lease.term();
        let leading = tokio::spawn(lease.run(CancellationToken::new()));
        let token = term.wait_for(Option::is_some).await.unwrap().as_ref().unwrap().token();
        leading.abort();
        Term::until(token, Instant::now() + Duration::from_secs(3600))
    }

    async fn close(
        &self,
        term: &Term,
        window: Window,
        unique: u64,
        view: &MembershipView,
    ) -> Result<u64, CloseError> {
        let count = WindowCount {
            window,
            unique_request_count: unique,
            accepted_ids: unique,
            has_imports: false,
            complete: true,
        };
        let counters = CounterCounts::default();
        let (stored, _) = self.coordinator.close(term, &count, &counters, view).await?;
        assert_eq!(stored.count.window, window);
        Ok(stored.count.unique_request_count)
    }
}

fn fields(server: &RedisServer, command: &str, key: String) -> Vec<String> {
    ::redis::cmd(command).arg(key).query(&mut server.connect()).unwrap()
}

/// The counts as a leader finds them after some heartbeats. At first the namespace was new to it.
async fn membership_view(instance: &Instance, window: Window) -> MembershipView {
    let deadline = Instant::now() + PATIENCE;
    loop {
        instance.has_sealed(window).await;
        if let Some(view) = instance.coordinator.membership_view(window).await.unwrap() {
            return view;
        }
        assert!(Instant::now() < deadline, "the reports are never believed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_token_stores_nothing() {
    let server = RedisServer::start();
    let keys = Keys::new("coordination");
    let (old, new) = (Instance::new("old", &server), Instance::new("new", &server));
    let window = window().previous();
    for instance in [&new, &old] {
        instance.has_sealed(window).await;
    }
    let next =
        async |instance: &Instance| instance.coordinator.resume().await.unwrap().map(|resume| resume.next);
    let stale = old.lead_and_die().await;
    let term = new.lead_and_die().await;
    assert!(term.token() > stale.token());

    let all = membership_view(&old, window).await;
    assert_eq!(old.close(&stale, window, 1, &all).await, Err(CloseError::Fenced));
    let forced = MembershipView { open: true, ..all.clone() };
    assert_eq!(old.close(&stale, window, 1, &forced).await, Err(CloseError::Fenced), "not by force either");
    assert_eq!(old.coordinator.commit_published(&stale, window).await, Err(CloseError::Fenced));
    assert_eq!(fields(&server, "HKEYS", keys.counts()), Vec::<String>::new());

    // The leader with the newest token stores the count. No other can change it.
    assert_eq!(next(&new).await, None, "it was the first, and gives the others time");
    let all = membership_view(&new, window).await;
    assert_eq!(next(&new).await, Some(window.next()), "the stream begins where the first one began");
    assert_eq!(new.close(&term, window, 7, &all).await, Ok(7));
    assert_eq!(new.close(&term, window, 8, &all).await, Ok(7), "the first one stays");
    let third = Instance::new("third", &server).lead_and_die().await;
    assert_eq!(new.close(&third, window, 9, &forced).await, Ok(7), "under a later token too");
    assert_eq!(new.close(&term, window, 9, &all).await, Err(CloseError::Fenced));

    // The position only moves forward.
    new.coordinator.commit_published(&third, window.next()).await.unwrap();
    new.coordinator.commit_published(&third, window).await.unwrap();
    assert_eq!(next(&new).await, Some(window.next().next()));

    // A flushed server has no token. The instance gets a higher one than before, and stores the published position again.
    ::redis::cmd("FLUSHALL").exec(&mut server.connect()).unwrap();
    assert_eq!(new.close(&third, window.next(), 9, &all).await, Err(CloseError::Fenced));
    assert!(new.lead_and_die().await.token() > third.token());
    let report = report_of(window);
    assert!(new.coordinator.heartbeat(&report).await.unwrap().lost);
    let late = Instance::new("late", &server);
    assert_eq!(late.coordinator.heartbeat(&report).await.unwrap().published, None);
    assert_eq!(new.coordinator.heartbeat(&report).await.unwrap().published, Some(window.next()));
    assert_eq!(late.coordinator.heartbeat(&report).await.unwrap().published, Some(window.next()));
}

/// An instance that joins gets the last counts. Older published ones are evicted.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_sixty_counts_are_remembered() {
    let server = RedisServer::start();
    let (leader, late) = (Instance::new("leader", &server), Instance::new("late", &server));
    let mut windows = vec![window()];
    while windows.len() < REMEMBERED + 7 {
        windows.push(windows.last().unwrap().previous());
    }
    windows.reverse();
    let newest = windows[windows.len() - 1];
    leader.has_sealed(newest).await;
    let term = leader.lead_and_die().await;
    let all = membership_view(&leader, newest).await;
    for (number, window) in (0..).zip(&windows) {
        assert_eq!(leader.close(&term, *window, number, &all).await, Ok(number));
    }
    let news = async |knows: Option<Window>| {
        let report = Heartbeat { knows, ..report_of(newest.next()) };
        let news = late.coordinator.heartbeat(&report).await.unwrap().news;
        news.iter().map(|news| (news.count.window, news.count.unique_request_count)).collect::<Vec<_>>()
    };
    let counts: Vec<_> = windows.iter().copied().zip(0..).collect();
    assert_eq!(fields(&server, "HKEYS", Keys::new("coordination").counts()).len(), counts.len() + 1);
    assert_eq!(news(None).await, counts[7..], "nothing is published yet, and nothing forgotten");
    leader.coordinator.commit_published(&term, newest).await.unwrap();
    assert_eq!(fields(&server, "HKEYS", Keys::new("coordination").counts()).len(), REMEMBERED + 1);
    assert_eq!(news(None).await, counts[7..]);
    assert_eq!(news(Some(windows[40])).await, counts[41..]);
    assert_eq!(news(Some(newest)).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_an_instance_has_open_closes_only_by_force() {
    let server = RedisServer::start();
    let (leader, late) = (Instance::new("leader", &server), Instance::new("late", &server));
    let window = window();
    leader.has_sealed(window).await;
    let term = leader.lead_and_die().await;
    let alone = membership_view(&leader, window).await;
    assert!(!alone.open && alone.joined == 1, "{alone:?}");

    // Its heartbeat comes between the leader's check and the close. It even seals the window, to which it may have added.
    late.has_sealed(window).await;
    assert_eq!(leader.close(&term, window, 3, &alone).await, Err(CloseError::Open));
    // The same after a silence in which the leader took it for dead.
    let both = membership_view(&leader, window).await;
    assert!(!both.open && both.joined == 2, "{both:?}");
    wait_for_silence(&leader, window).await;
    late.has_sealed(window).await;
    assert_eq!(leader.close(&term, window, 3, &both).await, Err(CloseError::Open));

    // It has the window open, so the leader waits for it.
    late.has_sealed(window.previous()).await;
    let open = membership_view(&leader, window).await;
    assert!(open.open && open.joined == 3, "{open:?}");
    assert_eq!(
        leader.close(&term, window, 3, &MembershipView { open: false, ..open.clone() }).await,
        Err(CloseError::Open)
    );
    assert_eq!(leader.close(&term, window, 3, &open).await, Ok(3), "by force");
    // It learns of the close, so that it adds no more ids.
    let report = report_of(window);
    assert_eq!(late.coordinator.heartbeat(&report).await.unwrap().closed, Some(window));
}

/// A later version may store more fields in a heartbeat: instances ignore unknown ones. If a known field is missing, it is
/// no heartbeat.
#[tokio::test(flavor = "multi_thread")]
async fn unknown_fields_of_a_heartbeat_are_ignored() {
    let server = RedisServer::start();
    let leader = Instance::new("leader", &server);
    let (window, instances) = (window(), Keys::new("coordination").instances());
    leader.has_sealed(window).await;
    let term = leader.lead_and_die().await;
    let alone = membership_view(&leader, window).await;
    let stored = || ::redis::cmd("HGET").arg(&instances).arg("leader").query(&mut server.connect());
    let heartbeat: String = stored().unwrap();
    let fields: serde_json::Value = serde_json::from_str(&heartbeat).unwrap();
    let names: Vec<_> = fields.as_object().unwrap().keys().collect();
    assert_eq!(names, ["at", "newest", "pending", "since", "watermark"]);
    let time: (u64, u64) = ::redis::cmd("TIME").query(&mut server.connect()).unwrap();
    let age = time.0 * 1_000_000 + time.1 - fields["at"].as_u64().unwrap();
    assert!(age < 5_000_000, "to the microsecond, in Redis's time: {age}");

    let store = |name: &str, fields: &serde_json::Value| {
        ::redis::cmd("HSET").arg(&instances).arg(name).arg(fields.to_string()).exec(&mut server.connect())
    };
    for field in names {
        let mut less = fields.clone();
        less.as_object_mut().unwrap().remove(field);
        store("nobody", &less).unwrap();
        let there = leader.coordinator.survey().await.unwrap().instances;
        assert_eq!(there, 1, "without {field} it is no heartbeat");
    }
    let still_alone = membership_view(&leader, window).await;
    assert_eq!(still_alone, MembershipView { time: still_alone.time, ..alone });
    let mut more = fields.clone();
    more["watermark"] = window.unix_seconds().into();
    more["version"] = serde_json::json!({"number": 3, "of": ["later", null]});
    store("later", &more).unwrap();
    let open = membership_view(&leader, window).await;
    assert!(open.open && leader.coordinator.survey().await.unwrap().instances == 2, "{open:?}");
    let unforced = MembershipView { open: false, ..open };
    assert_eq!(leader.close(&term, window, 3, &unforced).await, Err(CloseError::Open));
}

/// Waits until only this instance is alive. Meanwhile it sends heartbeats.
async fn wait_for_silence(living: &Instance, window: Window) {
    let deadline = Instant::now() + PATIENCE;
    while living.coordinator.survey().await.unwrap().instances > 1 {
        assert!(Instant::now() < deadline, "no instance is taken for dead");
        living.has_sealed(window).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_start_warns_about_eviction_and_states_the_memory_needed() {
    let redis = RedisServer::start_with(Flavour::Debian, &["--maxmemory-policy", "volatile-lru"]);
    let server = Server::start(&["--redis-url", &redis.url(), "--mode", "exact"]).await;
    let log = server.log();
    let warned: Vec<_> = log.iter().filter(|event| event["level"] == "WARN").collect();
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert_eq!(warned[0]["fields"]["maxmemory_policy"], "volatile-lru");
    assert!(warned[0]["fields"]["message"].as_str().unwrap().contains("noeviction"), "{warned:?}");
    // 16 minutes of 10 000 ids of 54 bytes.
    let forecast = "exact counting: at 10000 different ids a second Redis holds up to 518 MB";
    assert!(
        log.iter().any(|event| event["fields"]["message"].as_str().unwrap().starts_with(forecast)),
        "{log:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_start_warns_if_hours_and_days_need_more_memory_than_redis_has() {
    let redis = RedisServer::start_with(Flavour::Debian, &["--maxmemory", "200mb"]);
    let url = redis.url();
    for (counters, megabytes) in [("1000", Some(311)), ("600", None)] {
        let args = ["--redis-url", &url, "--max-counters", counters, "--namespace", counters];
        let log = Server::start(&args).await.log();
        let warned: Vec<_> = log.iter().filter(|event| event["level"] == "WARN").collect();
        let warning = megabytes.map(|megabytes| {
            format!(
                "hours and days may take {megabytes} MB, but the maxmemory of Redis is 209 MB: give it more"
            )
        });
        assert_eq!(warned.len(), usize::from(warning.is_some()), "{warned:?}");
        for (warned, warning) in warned.iter().zip(warning) {
            assert!(warned["fields"]["message"].as_str().unwrap().starts_with(&warning), "{warned:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_off_is_reported() {
    let redis = RedisServer::start();
    let server = Server::start_with_clock("+3s", &["--redis-url", &redis.url()]).await;
    let said = |event: &serde_json::Value| {
        let message = event["fields"]["message"].as_str().unwrap();
        event["level"] == "WARN" && message.contains("ahead of the store's")
    };
    wait_for("a warning", || server.log().iter().any(said).then_some(())).await;
    let offset = server.metric("headcount_clock_offset_seconds").await;
    assert!((-3.5..-2.5).contains(&offset), "{offset}");
    assert_eq!(server.log().iter().filter(|event| said(event)).count(), 1, "once");
}
