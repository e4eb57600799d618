//! Checks of Redis: the server, its rights, its keys, and the other instances.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::time::SystemTime;

use ::redis::Pipeline;

use super::rights::{self, Rights, Uses};
use crate::cli::backend::{Coordination, instance_id};
use crate::cli::findings::{Findings, Verdict};
use crate::cli::settings::Settings;
use crate::model::counter::BUCKETS;
use crate::model::window::ClockOffset;
use crate::publish::sinks::stream::{StreamPreflight, StreamSink};
use crate::redis::keys::Keys;
use crate::redis::server::{OLDEST, ServerFacts};
use crate::redis::{self, Address, Call, Redis, Routed};
use crate::telemetry::metrics::Metrics;

/// Connects as an instance does, and checks everything.
pub(super) async fn look(
    settings: &Settings,
    server: &redis::Settings,
    findings: &mut Findings<impl Write>,
) -> io::Result<()> {
    let address = &server.address;
    let redis = match server.connect(&Metrics::new()).await {
        Ok(redis) => redis,
        Err(error) => return findings.add(Verdict::Fail, "reachable", error),
    };
    findings.add(Verdict::Ok, "reachable", format_args!("Redis at {address}"))?;
    look_at_servers(settings, &redis, findings).await?;
    look_at_cluster(settings, &redis, findings).await?;
    look_at_rights(settings, address, &redis, findings).await?;
    look_at_keys(settings, &redis, findings).await?;
    look_at_others(settings, &redis, findings).await?;
    look_at_stream(settings, &redis, findings).await
}

/// Checks the stream of `--redis-stream`.
async fn look_at_stream(
    settings: &Settings,
    redis: &Redis,
    findings: &mut Findings<impl Write>,
) -> io::Result<()> {
    let Some(key) = &settings.sinks.stream else { return Ok(()) };
    let (retention, counter_retention) = (settings.counting.retention, settings.counting.counter_retention);
    let origin = settings.origin(instance_id());
    let sink = StreamSink::new(redis, key.clone(), origin, retention, counter_retention);
    match sink.preflight().await {
        Err(error) => findings.add(Verdict::Fail, "stream", error),
        Ok(StreamPreflight { holds_up: Some(reason), .. }) => findings.add(Verdict::Warn, "stream", reason),
        Ok(StreamPreflight { last: None, .. }) => {
            findings.add(Verdict::Ok, "stream", format_args!("{key} has no window yet"))
        }
        Ok(StreamPreflight { last: Some(last), .. }) => {
            findings.add(Verdict::Ok, "stream", format_args!("{key} goes on after {last}"))
        }
    }
}

/// Looks for keys of the namespace that have another type than headcount's.
async fn look_at_keys(
    settings: &Settings,
    redis: &Redis,
    findings: &mut Findings<impl Write>,
) -> io::Result<()> {
    let keys = Keys::new(&settings.namespace);
    let expected = [
        (keys.lease(), "string"),
        (keys.token(), "string"),
        (keys.instances(), "hash"),
        (keys.counts(), "hash"),
        (keys.published(), "hash"),
        (keys.config(), "hash"),
    ];
    let mut ask = Pipeline::new();
    for (key, _) in &expected {
        ask.cmd("TYPE").arg(key);
    }
    let ask = async |connection: &mut Routed| ask.query_async(connection).await;
    let found: Vec<String> = match redis.run(Call::Ask, &keys.lease(), ask).await {
        Ok(found) => found,
        // If the user has no right to ask, `look_at_rights` has said so.
        Err(_) => return Ok(()),
    };
    for ((key, expected), found) in expected.iter().zip(found) {
        if found != "none" && found != *expected {
            let text = format_args!(
                "{key} is a {found}, not a {expected}: another program writes there; an instance puts the key aside"
            );
            findings.add(Verdict::Warn, "keys", text)?;
        }
    }
    Ok(())
}

async fn look_at_servers(
    settings: &Settings,
    redis: &Redis,
    findings: &mut Findings<impl Write>,
) -> io::Result<()> {
    let mut servers = match ServerFacts::of_all(redis).await {
        Ok(servers) => servers,
        Err(error) => return findings.add(Verdict::Warn, "version", format_args!("unknown: {error}")),
    };
    let max_memory = ServerFacts::max_memory_of(&servers);
    for replica in redis.members().await.iter().filter(|member| !member.is_primary) {
        match ServerFacts::of_member(redis, replica).await {
            Ok(server) => servers.push(server),
            Err(error) => {
                let name = replica.name();
                findings.add(Verdict::Warn, "version", format_args!("{name}: unknown: {error}"))?;
            }
        }
    }
    for server in &servers {
        let at = server.at.as_ref().map(|at| format!("{at}: ")).unwrap_or_default();
        if server.is_new_enough() {
            findings.add(Verdict::Ok, "version", format_args!("{at}{server}"))?;
        } else {
            let (major, minor) = OLDEST;
            findings.add(
                Verdict::Fail,
                "version",
                format_args!("{at}{server} is too old, use Redis {major}.{minor} or later, or Valkey"),
            )?;
        }
    }
    if let Some(warning) = settings.counting.too_much_history(max_memory) {
        findings.add(Verdict::Warn, "memory", warning)?;
    }
    for server in &servers {
        let at = server.at.as_ref().map(|at| format!("{at}: ")).unwrap_or_default();
        let policy = &server.eviction_policy;
        if server.evicts() {
            let text = format_args!(
                "{at}{policy} may drop keys that are still needed: set maxmemory-policy to noeviction"
            );
            findings.add(Verdict::Warn, "eviction", text)?;
        } else {
            let policy = if policy.is_empty() { "unknown" } else { policy };
            findings.add(Verdict::Ok, "eviction", format_args!("{at}{policy}"))?;
        }
    }
    Ok(())
}

/// Names the servers of a cluster, and says if the keys do not spread over them.
async fn look_at_cluster(
    settings: &Settings,
    redis: &Redis,
    findings: &mut Findings<impl Write>,
) -> io::Result<()> {
    if !redis.is_cluster() {
        return Ok(());
    }
    for member in redis.members().await {
        let name = member.name();
        let verdict = if member.is_failing { Verdict::Warn } else { Verdict::Ok };
        let failing = if member.is_failing { ", which the cluster cannot reach" } else { "" };
        if member.is_primary {
            let slots = member.slot_count();
            findings.add(verdict, "node", format_args!("{name}: a primary with {slots} slots{failing}"))?;
        } else {
            findings.add(verdict, "node", format_args!("{name}: a replica{failing}"))?;
        }
    }
    let (keys, shards) = (Keys::new(&settings.namespace), settings.counting.shards);
    let of_shards: Vec<_> = (0..shards.count().into()).map(|shard| keys.merge(shard, shards, "")).collect();
    let of_buckets: Vec<_> = (0..BUCKETS).map(|bucket| keys.merge_of_bucket(bucket, "")).collect();
    let primaries = redis.nodes_with_slots().len();
    let on = |keys: &[String]| keys.iter().map(|key| redis.number_for(key)).collect::<BTreeSet<_>>().len();
    let (with_shards, with_buckets) = (on(&of_shards), on(&of_buckets));
    let text = format!(
        "{} shards on {with_shards}, and the buckets of counters on {with_buckets}, of {primaries} primaries",
        shards.count()
    );
    if with_shards == 1 && primaries > 1 {
        let advice = "one primary takes all ids of the total: give more --shards, several for each primary";
        findings.add(Verdict::Warn, "spread", format_args!("{text}: {advice}"))
    } else {
        findings.add(Verdict::Ok, "spread", text)
    }
}

async fn look_at_rights(
    settings: &Settings,
    address: &Address,
    redis: &Redis,
    findings: &mut Findings<impl Write>,
) -> io::Result<()> {
    let user = address.user();
    let (counting, stream) = (&settings.counting, settings.sinks.stream.as_deref());
    let needed = Uses { mode: counting.mode, counters: counting.may_count().is_ok(), stream };
    match rights::of(redis, &settings.namespace, needed).await {
        Ok(Rights { refused, tried, .. }) if refused.is_empty() => findings.add(
            Verdict::Ok,
            "rights",
            format_args!("user {user} may use all {} commands", tried.len()),
        ),
        Ok(Rights { refused, reason, .. }) => findings.add(
            Verdict::Fail,
            "rights",
            format_args!("user {user} cannot use {}: {reason}", refused.join(", ")),
        ),
        Err(error) => findings.add(Verdict::Fail, "rights", error),
    }
}

async fn look_at_others(
    settings: &Settings,
    redis: &Redis,
    findings: &mut Findings<impl Write>,
) -> io::Result<()> {
    let Coordination { coordinator, lease } = Coordination::new(settings, redis, &instance_id());
    let asked = SystemTime::now();
    let survey = match coordinator.survey().await {
        Ok(survey) => survey,
        Err(error) => return findings.add(Verdict::Fail, "settings", error),
    };
    let offset = ClockOffset::new(survey.time, asked, SystemTime::now());
    let (verdict, remark) = if offset.exceeds(settings.close_timeout) {
        (Verdict::Fail, ", more than --close-timeout: windows would be published without this instance")
    } else if offset.is_worth_a_warning() {
        (Verdict::Warn, ": ids may be counted in a neighbouring window")
    } else {
        (Verdict::Ok, "")
    };
    findings.add(verdict, "clock", format_args!("{offset} that of Redis{remark}"))?;

    let namespace = &settings.namespace;
    for disagreement in &survey.disagreements {
        findings.add(Verdict::Fail, "settings", disagreement)?;
    }
    if survey.disagreements.is_empty() {
        let text = match survey.instances {
            0 => format!("no instance uses --namespace {namespace}"),
            1 => format!("as those of the instance of --namespace {namespace}"),
            instances => format!("as those of the {instances} instances of --namespace {namespace}"),
        };
        findings.add(Verdict::Ok, "settings", text)?;
    }
    match lease.current_leader().await {
        Ok(Some(leader)) => findings.add(Verdict::Ok, "lease", format_args!("{leader} leads")),
        Ok(None) => findings.add(Verdict::Ok, "lease", "no instance leads"),
        Err(error) => findings.add(Verdict::Fail, "lease", error),
    }
}
