//! `headcount retention`: how many ids came again, on the command line.

use std::process::Output;
use std::time::SystemTime;

use headcount::model::shard::Shards;
use headcount::redis::keys::Keys;

use crate::retention::{HOUR, store_hours};
use crate::support::fleet::{Fleet, seconds, wait_for_room_in_the_hour};
use crate::support::process::{headcount, output_of, said};
use crate::support::redis::Redis;
use crate::support::server::Server;
use crate::support::wait_until;

fn ask(server: &Server, args: &[&str]) -> Output {
    let mut command = headcount();
    command.arg("retention").args(args).args(["--step", "hour"]);
    output_of(command.env("HEADCOUNT_URL", format!("http://{}", server.address)))
}

#[tokio::test(flavor = "multi_thread")]
async fn it_prints_the_steps_of_the_total_and_of_a_counter() {
    let redis = Redis::start();
    wait_for_room_in_the_hour().await;
    let fleet = Fleet::start(1, &redis, "retention", &[]).await;
    let server = &fleet.servers[0];
    let keys = Keys::new("retention");
    wait_until("a window to be rolled up", async || {
        ::redis::cmd("EXISTS").arg(keys.rolled()).query::<bool>(&mut redis.connect()).unwrap()
    })
    .await;
    let first = seconds(SystemTime::now()) / HOUR * HOUR - 3 * HOUR;
    store_hours(&redis, "retention", Shards::ONE, first);
    let from = first.to_string();
    for counter in [&[][..], &["--counter", "a"]] {
        // The running hour is left out: it may change between the question and the answer.
        let args = [&["--from", &*from, "--steps", "3"], counter].concat();
        let of = if counter.is_empty() { "" } else { "&counter=a" };
        let query = format!("/api/verve/retention?from={first}&step=hour&steps=3{of}");
        let (answer, printed) = (server.get(&query).await, said(&ask(server, &args)));
        let json = answer.json();
        let text = |pointer: &str| json.pointer(pointer).unwrap().to_string().trim_matches('"').to_owned();
        let [all, again, last] = &printed[..] else { panic!("three lines: {printed:?}") };
        assert!(
            all.starts_with(&format!("{} (standard error 0.81 %, ", text("/unique_request_count"))),
            "{all}"
        );
        let (start, next) = (text("/from"), text("/steps/0/timestamp"));
        assert!(all.ends_with(&format!(") from {start} to {next}, complete")), "{all}");
        assert!(again.starts_with(&format!("{} (standard error ", text("/steps/0/returned"))), "{again}");
        let among = text("/steps/0/unique_request_count");
        let end = format!(
            ") of these again from {next} to {}, among {among}, complete",
            text("/steps/1/timestamp")
        );
        assert!(again.ends_with(&end), "{again}");
        // This hour lacks ids.
        assert!(last.ends_with(", incomplete: not over, or ids may be missing"), "{last}");
        assert_eq!(said(&ask(server, &[&args[..], &["--json"]].concat())), [&*answer.body]);
    }
}

#[tokio::test]
async fn it_says_why_the_service_refuses() {
    let server = Server::start(&["--window", "60s", "--shards", "17"]).await;
    let url = format!("http://{}", server.address);
    let running = seconds(SystemTime::now()) / HOUR * HOUR;
    for (from, words) in [
        (
            running.to_string(),
            "not_available: retention of the total needs --shards of 16 or less: name a counter",
        ),
        ((running + 60).to_string(), "invalid_range: "),
        ("yesterday".to_owned(), "invalid_range: from is not a time: "),
    ] {
        let output = ask(&server, &["--from", &from, "--steps", "2"]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");
        assert!(error.starts_with(&format!("error: {url} answers {words}")), "{error}");
    }
}
