//! Reads counts and metrics from the service.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use crate::support::wait_blocking;

pub fn accepted(address: SocketAddr) -> u64 {
    total(address, "headcount_accepted_ids_total")
}

pub fn total(address: SocketAddr, name: &str) -> u64 {
    let metrics = get(address, "/metrics");
    let values = metrics.lines().filter_map(|line| line.rsplit_once(' '));
    let mut values = values.filter(|(series, _)| *series == name);
    values.next().map_or(0, |(_, ids)| ids.parse().expect("a number"))
}

/// The different ids of the running window so far.
pub fn unique(address: SocketAddr) -> f64 {
    current(&counts(address, "")).expect("a count")
}

/// The counts of the running window and of the last closed one. `query` may name a counter, `?counter=campaign-1`.
pub fn counts(address: SocketAddr, query: &str) -> Value {
    let mut answer = Value::Null;
    // On a busy machine Redis may have been away for a moment. Then the service has no count yet.
    wait_blocking("a count", || {
        answer = json(address, &format!("/api/verve/unique{query}"));
        answer.is_object()
    });
    answer
}

/// The same of a counter. None if this build has no counters.
pub fn unique_of(address: SocketAddr, counter: &str) -> Option<f64> {
    let answer = json(address, &format!("/api/verve/unique?counter={counter}"));
    if answer["counter"] == counter { current(&answer) } else { None }
}

/// The different ids of the last closed window, which has to be complete. `query` is that of [`counts`].
pub fn last(address: SocketAddr, query: &str) -> Result<f64, String> {
    let answer = counts(address, query);
    let last = &answer["last"];
    let complete = last["unique_request_count"].as_f64().filter(|_| last["complete"] == true);
    complete.ok_or_else(|| format!("the last closed window is not complete: {answer}"))
}

fn current(answer: &Value) -> Option<f64> {
    answer["current"]["unique_request_count"].as_f64()
}

/// Null if the answer is not JSON.
pub fn json(address: SocketAddr, path: &str) -> Value {
    serde_json::from_str(&get(address, path)).unwrap_or_default()
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("a connection");
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer.split_once("\r\n\r\n").expect("a body").1.to_owned()
}
