//! `headcount check` finds faults, and leaves nothing behind.

use std::collections::BTreeSet;
use std::process::Command;

use headcount::redis::keys::Keys;

use crate::support::disk::SmallDisk;
use crate::support::fleet::{Fleet, LATE_IS_NOT_AWAY};
use crate::support::free_port;
use crate::support::process::{headcount, headcount_with_clock, output_of};
use crate::support::redis::{Flavour, Redis};
use crate::support::server::Server;

/// All that an instance needs, in either mode; as in docs/instances.md.
pub const RIGHTS: &str = "~{headcount}:* ~{headcount:* +pfadd +pfcount +pfmerge +sadd +scard +sscan \
                      +rpush +lrange +set +get +mget +exists +del +expire +expireat +strlen +pexpire +pttl +type +rename +hset +hsetnx +hget +hmget +hgetall +hexists +hkeys +hdel +evalsha \
                      +script|load +time +info +ping +select +multi +exec";

/// The output of a run: a line for each finding.
struct Checked {
    code: i32,
    lines: Vec<String>,
}

impl Checked {
    /// The lines that are not `ok`.
    fn complaints(&self) -> Vec<&str> {
        self.lines.iter().map(String::as_str).filter(|line| !line.starts_with("ok  ")).collect()
    }

    /// The one finding about something.
    #[track_caller]
    fn about(&self, subject: &str) -> &str {
        let about: Vec<_> = self.lines.iter().filter(|line| line[5..].starts_with(subject)).collect();
        assert_eq!(about.len(), 1, "{subject}: {:?}", self.lines);
        about[0]
    }
}

#[track_caller]
fn run(mut command: Command, args: &[&str]) -> Checked {
    let output = output_of(command.arg("check").args(args));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    let out = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = out.lines().map(str::to_owned).collect();
    assert!(!lines.is_empty());
    for line in &lines {
        assert!(["ok   ", "warn ", "FAIL "].iter().any(|verdict| line.starts_with(verdict)), "{line}");
    }
    Checked { code: output.status.code().unwrap(), lines }
}

#[track_caller]
fn check(url: &str, args: &[&str]) -> Checked {
    run(headcount(), &[&["--redis-url", url][..], args].concat())
}

fn keys(redis: &Redis) -> BTreeSet<String> {
    ::redis::cmd("KEYS").arg("*").query(&mut redis.connect()).unwrap()
}

#[test]
fn check_passes_in_an_empty_namespace() {
    for flavour in Flavour::at_hand() {
        let redis = Redis::start_with(flavour, &[]);
        for mode in ["hll", "exact"] {
            let checked = check(&redis.url(), &["--mode", mode]);
            assert_eq!((checked.code, checked.complaints()), (0, vec![]), "{flavour:?}");
            let subjects: Vec<_> =
                checked.lines.iter().filter_map(|line| line[5..].split(':').next()).collect();
            assert_eq!(
                subjects,
                ["reachable", "version", "eviction", "rights", "clock", "settings", "lease"],
                "{flavour:?}"
            );
            assert_eq!(checked.about("settings"), "ok   settings: no instance uses --namespace headcount");
            assert_eq!(checked.about("lease"), "ok   lease: no instance leads");
        }
        assert_eq!(keys(&redis), BTreeSet::new(), "{flavour:?}: nothing is left");
    }
    let alone = run(headcount(), &[]);
    assert_eq!((alone.code, alone.complaints()), (0, vec![]));
    assert!(alone.about("store").contains("--redis-url"), "{:?}", alone.lines);
}

/// check sees running instances and does not disturb them.
#[tokio::test(flavor = "multi_thread")]
async fn check_passes_beside_running_instances() {
    let redis = Redis::start();
    let fleet = Fleet::start(2, &redis, "fleet", &["--mode", "exact", "--shards", "2"]).await;
    fleet.wait_published(0).await;
    let shared = Keys::new("fleet");
    let state = || -> (Vec<String>, String, String) {
        let mut connection = redis.connect();
        let mut instances: Vec<String> =
            ::redis::cmd("HKEYS").arg(shared.instances()).query(&mut connection).unwrap();
        instances.sort();
        let mut get = |key| ::redis::cmd("GET").arg(key).query(&mut connection).unwrap();
        (instances, get(shared.lease()), get(shared.token()))
    };
    let before = state();
    let same = ["--namespace", "fleet", "--window", "2s", "--mode", "exact", "--shards", "2"];
    let checked = check(&redis.url(), &same);
    assert_eq!((checked.code, checked.complaints()), (0, vec![]));
    assert_eq!(checked.about("settings"), "ok   settings: as those of the 2 instances of --namespace fleet");
    assert_eq!(checked.about("lease"), format!("ok   lease: {} leads", before.1));
    assert_eq!(state(), before);
    assert!(keys(&redis).iter().all(|key| !key.contains(":check:")), "{:?}", keys(&redis));

    let differs = check(&redis.url(), &["--namespace", "fleet", "--window", "10s"]);
    assert_eq!(differs.code, 1);
    let said = differs.complaints();
    assert_eq!(said.len(), 3, "{said:?}");
    for (line, setting) in said.iter().zip([
        "--mode is hll here, but exact for the other instances of --namespace fleet",
        "--window is 10s here, but 2s for",
        "--shards is 1 here, but 2 for",
    ]) {
        assert!(line.starts_with("FAIL settings") && line.contains(setting), "{line}");
    }
    assert_eq!(state(), before);
}

#[test]
fn an_absent_redis_fails_the_check() {
    let url = format!("redis://:s3cret@127.0.0.1:{}", free_port());
    let checked = check(&url, &["--redis-wait", "300ms"]);
    assert_eq!((checked.code, checked.lines.len()), (1, 1), "{:?}", checked.lines);
    let line = checked.about("reachable");
    assert!(line.starts_with("FAIL") && line.contains("refused") && line.contains("--redis-url"), "{line}");
    assert!(!line.contains("s3cret"), "{line}");
}

#[test]
fn a_wrong_password_fails_the_check() {
    let redis = Redis::start_with(Flavour::Debian, &["--requirepass", "right"]);
    let checked = check(&redis.url().replace("//", "//:wr0ng@"), &["--redis-wait", "300ms"]);
    assert_eq!((checked.code, checked.lines.len()), (1, 1), "{:?}", checked.lines);
    let line = checked.about("reachable");
    assert!(line.starts_with("FAIL") && line.contains("uthentication"), "{line}");
    assert!(!line.contains("wr0ng"), "{line}");
}

/// check names the missing rights, and leaves no keys behind.
#[test]
fn missing_rights_of_a_redis_user_are_named() {
    let users = [
        ("nopfadd", "~* +@all -pfadd", "hll", "PFADD: NOPERM"),
        ("nosets", "~* +@all -sadd -scard", "exact", "SCARD, SADD: NOPERM"),
        ("reader", "~* +@all -@write", "hll", "DEL, PEXPIRE, HDEL, EXPIREAT: NOPERM"),
        ("noscripts", "~* +@all -@scripting", "hll", "SCRIPT LOAD, EVALSHA: NOPERM"),
        ("elsewhere", "~other:* +@all", "hll", "DEL, EVALSHA, PEXPIRE"),
    ];
    let mut args: Vec<&str> = Vec::new();
    for (user, rights, ..) in &users {
        args.extend(["--user", user, "on", ">secret"]);
        args.extend(rights.split_whitespace());
    }
    let redis = Redis::start_with(Flavour::Debian, &args);
    for (user, _, mode, refused) in users {
        let url = redis.url().replace("//", &format!("//{user}:secret@"));
        let checked = check(&url, &["--mode", mode]);
        assert_eq!(checked.code, 1, "{user}: {:?}", checked.lines);
        let line = checked.about("rights");
        assert!(line.starts_with(&format!("FAIL rights: user {user} cannot use {refused}")), "{line}");
        assert!(!line.contains("secret"), "{line}");
        assert_eq!(keys(&redis), BTreeSet::new(), "{user}: nothing is left");
    }
}

/// Checking and serving need only the rights that docs/instances.md lists.
#[tokio::test(flavor = "multi_thread")]
async fn the_documented_rights_are_enough() {
    let text = include_str!("../../docs/instances.md").split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains(RIGHTS), "{RIGHTS}");
    let args: Vec<_> =
        ["--user", "headcount", "on", ">secret"].into_iter().chain(RIGHTS.split_whitespace()).collect();
    let redis = Redis::start_with(Flavour::Debian, &args);
    let url = redis.url().replace("//", "//headcount:secret@");
    for mode in ["hll", "exact"] {
        let checked = check(&url, &["--mode", mode]);
        assert_eq!((checked.code, checked.complaints()), (0, vec![]));
    }
    let mut command = headcount();
    // Not with a flag: check would warn about the password.
    command
        .env("HEADCOUNT_REDIS_URL", &url)
        .args(["--listen", "127.0.0.1:0", "--window", "1s"])
        .args(LATE_IS_NOT_AWAY);
    let mut server = Server::run(command).await;
    assert_eq!(server.get("/api/verve/accept?id=1&counter=a").await.body, "ok");
    let closed = server.wait_closed(3).await;
    assert_eq!(closed.iter().map(|closed| closed.unique).sum::<u64>(), 1, "{closed:?}");
    assert!(server.stop().await.success());
    let log = server.log();
    assert!(log.iter().all(|event| event["level"] == "INFO"), "{log:?}");
}

#[test]
fn an_evicting_redis_is_warned_about() {
    let redis = Redis::start_with(Flavour::Debian, &["--maxmemory-policy", "allkeys-lru"]);
    let checked = check(&redis.url(), &[]);
    assert_eq!(checked.code, 0, "a warning is no failure");
    assert_eq!(checked.complaints(), [checked.about("eviction")]);
    let line = checked.about("eviction");
    assert!(line.starts_with("warn eviction: allkeys-lru") && line.contains("noeviction"), "{line}");
}

#[test]
fn a_redis_with_too_little_memory_for_hours_and_days_is_warned_about() {
    let redis = Redis::start_with(Flavour::Debian, &["--maxmemory", "200mb"]);
    let checked = check(&redis.url(), &["--max-counters", "1000"]);
    assert_eq!((checked.code, checked.complaints()), (0, vec![checked.about("memory")]));
    let line = checked.about("memory");
    assert!(line.starts_with("warn memory: hours and days may take 311 MB, but the maxmemory"), "{line}");
    assert!(check(&redis.url(), &["--counter-keep-hours", "0s"]).complaints().is_empty());
}

/// A Redis that refuses writes fails the check, whatever the user's rights.
#[test]
fn a_full_redis_fails_the_check() {
    let full = Redis::start_with(Flavour::Debian, &["--maxmemory", "1"]);
    let checked = check(&full.url(), &[]);
    assert_eq!(checked.code, 1);
    let line = checked.about("rights");
    assert!(line.starts_with("FAIL") && line.contains("OOM"), "{line}");
}

#[test]
fn differing_clocks_are_reported() {
    let redis = Redis::start();
    for (offset, code, verdict, said) in [
        ("-3s", 0, "warn", "behind that of Redis: ids may be counted in a neighbouring window"),
        ("+3s", 0, "warn", "ahead of that of Redis"),
        ("+60s", 1, "FAIL", "more than --close-timeout"),
    ] {
        let checked = run(headcount_with_clock(offset), &["--redis-url", &redis.url()]);
        assert_eq!(checked.code, code, "{:?}", checked.lines);
        let line = checked.about("clock");
        assert!(line.starts_with(verdict) && line.contains(said), "{line}");
        assert_eq!(checked.complaints(), [line]);
    }
}

/// check names shared keys of a wrong type.
#[test]
fn keys_of_another_type_are_named() {
    let redis = Redis::start();
    let keys = Keys::new("headcount");
    for key in [keys.lease(), keys.config()] {
        ::redis::cmd("SADD").arg(&key).arg("x").exec(&mut redis.connect()).unwrap();
    }
    let output = output_of(headcount().args(["check", "--redis-url", &redis.url()]));
    let found = String::from_utf8(output.stdout).unwrap();
    for (key, expected) in [(keys.lease(), "string"), (keys.config(), "hash")] {
        assert!(found.contains(&format!("warn keys: {key} is a set, not a {expected}")), "{found}");
    }
}

/// check writes a byte into the directory of `--log-dir`. It does not create the directory.
#[test]
fn the_directory_of_files_is_tried() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let files = |path: &str| {
        let checked = run(headcount(), &["--log-dir", path]);
        (checked.code, checked.about("files").to_owned())
    };
    let path = at("a/b");
    assert_eq!(files(&path), (0, format!("ok   files: {path} does not exist, it will be made")));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");

    let path = at("there");
    std::fs::create_dir(&path).unwrap();
    assert_eq!(files(&path), (0, format!("ok   files: {path} can be written to")));
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0, "nothing is left");

    std::fs::write(at("file"), "").unwrap();
    for in_the_way in [at("file"), at("file/under")] {
        let (code, line) = files(&in_the_way);
        assert_eq!(code, 1);
        assert!(
            line.starts_with(&format!("FAIL files: cannot write to '{in_the_way}', choose another")),
            "{line}"
        );
        assert!(line.contains("Not a directory"), "{line}");
    }

    let full = at("full");
    std::fs::create_dir(&full).unwrap();
    let disk = SmallDisk::mount(full.as_ref());
    assert_eq!(files(&full).0, 0);
    disk.fill();
    let (code, line) = files(&full);
    assert!(code == 1 && line.contains("No space left on device"), "{line}");
    disk.free();
    assert_eq!(files(&full).0, 0);
}

/// check reads the stream of `--redis-stream` as the sink would, and does not change it.
#[test]
fn the_stream_is_tried() {
    const LATER: &str = "99999999999000-0";
    for flavour in Flavour::at_hand() {
        let redis = Redis::start_with(flavour, &[]);
        let mut connection = redis.connect();
        let mut redis_cli = |words: &[&str]| -> ::redis::Value {
            ::redis::cmd(words[0]).arg(&words[1..]).query(&mut connection).unwrap()
        };
        let stream = |url: &str| {
            let checked = check(url, &["--redis-stream", "counts"]);
            (checked.code, checked.about("stream").to_owned(), checked)
        };
        let url = redis.url();
        let (code, line, _) = stream(&url);
        assert_eq!((code, &*line), (0, "ok   stream: counts has no window yet"), "{flavour:?}");
        assert_eq!(keys(&redis), BTreeSet::new(), "{flavour:?}");

        redis_cli(&["SET", "counts", "taken"]);
        let (code, line, _) = stream(&url);
        assert!(
            code == 1 && line.starts_with("FAIL stream: counts: ") && line.contains("WRONGTYPE"),
            "{line}"
        );
        redis_cli(&["DEL", "counts"]);

        redis_cli(&["XADD", "counts", LATER, "f", "v"]);
        let (code, line, _) = stream(&url);
        let remedy = format!("XDEL counts {LATER}");
        assert!(code == 1 && line.starts_with("FAIL stream: ") && line.contains(&remedy), "{line}");
        redis_cli(&["XDEL", "counts", LATER]);
        let (code, line, _) = stream(&url);
        assert!(
            code == 0 && line.starts_with("warn stream: ") && line.contains(LATER),
            "{flavour:?}: {line}"
        );
        redis_cli(&["DEL", "counts"]);

        let of_ours = ["timestamp", "2023-11-14T22:13:00Z", "unique_request_count", "7"];
        let whose = ["namespace", "headcount", "window_seconds", "60"];
        redis_cli(&[&["XADD", "counts", "1699999980000-0"], &of_ours[..], &whose].concat());
        let (code, line, _) = stream(&url);
        assert_eq!((code, &*line), (0, "ok   stream: counts goes on after 2023-11-14T22:13:00Z"));
        assert_eq!(redis_cli(&["XLEN", "counts"]), ::redis::Value::Int(1));

        let rights = RIGHTS.split_whitespace();
        let term = ["ACL", "SETUSER", "half", "on", "nopass", "~counts"];
        redis_cli(&term.into_iter().chain(rights).collect::<Vec<_>>());
        let as_half = url.replace("redis://", "redis://half:none@");
        let refused = "cannot use XADD, XINFO STREAM, XSETID";
        let (code, _, checked) = stream(&as_half);
        assert!(code == 1 && checked.about("rights").contains(refused), "{:?}", checked.lines);
        redis_cli(&["ACL", "SETUSER", "half", "+xadd", "+xinfo", "+xsetid"]);
        let (code, _, checked) = stream(&as_half);
        let refused = "cannot use XADD, XINFO STREAM: NOPERM";
        assert!(code == 1 && checked.about("rights").contains(refused), "of counters: {:?}", checked.lines);
        redis_cli(&["ACL", "SETUSER", "half", "~counts:counters"]);
        assert_eq!(stream(&as_half).0, 0, "{flavour:?}");
        assert_eq!(redis_cli(&["EXISTS", "counts:counters"]), ::redis::Value::Int(0));
    }
}
