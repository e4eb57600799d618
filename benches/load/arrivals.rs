//! Latency at a fixed rate of arrivals: an open-loop client.
//!
//! A closed-loop client sends its next request after the last answer. So it slows down with the server, and hides the
//! delay that independent clients would see (Tene's "coordinated omission"). Here each request has a scheduled time, at
//! equal distances, and the requests use the connections in turn. A request waits while its connection is busy. Its
//! latency counts from its scheduled time, not from when it was sent.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use serde_json::{Value, json};

use crate::Effort;
use crate::report::{Target, head, line, median, ratio};
use crate::subjects::{Kind, Subject};
use crate::support::SplitMix;
use crate::wrk::{self, Load};

const CONNECTIONS: usize = 64;
const IDS: u64 = 1_000_000;
/// The warm-up is not measured: connections are new, memory is cold.
const WARM_UP: Duration = Duration::from_secs(1);

pub fn measure(effort: Effort) -> Result<Value, String> {
    let full = wrk::measure(&Kind::Noop.start(false), Load::new(effort.duration, 0))?.requests_per_second;
    let rate = full / 2.0;
    let kinds = [Kind::Noop, Kind::MEMORY, Kind::CHANGED, Kind::HLL, Kind::EXACT];
    let mut p99s = vec![Vec::new(); kinds.len()];
    let mut p50s = p99s.clone();
    for round in 0..effort.rounds {
        for (place, kind) in kinds.iter().enumerate() {
            let subject = kind.start(false);
            let mut micros = send(&subject, rate, effort.duration, round)
                .map_err(|error| format!("{}: {error}", kind.name()))?;
            micros.sort_unstable();
            let at = |share: usize| f64::from(micros[micros.len() * share / 100]);
            p50s[place].push(at(50));
            p99s[place].push(at(99));
        }
    }
    head(&format!("{rate:.0} arrivals a second"), &["p50, µs", "p99, µs", "p99 / no-op"]);
    let mut figures = serde_json::Map::new();
    for (place, kind) in kinds.iter().enumerate() {
        let target = if *kind == Kind::HLL { Target::AtMost(1.5) } else { Target::None };
        line(
            kind.name(),
            &[
                format!("{:.0}", median(p50s[place].clone())),
                format!("{:.0}", median(p99s[place].clone())),
                target.judge(ratio(&p99s[place], &p99s[0])),
            ],
        );
        figures.insert(kind.name().to_owned(), json!({ "p50": p50s[place], "p99": p99s[place] }));
    }
    figures.insert("arrivals_a_second".to_owned(), json!(rate));
    Ok(figures.into())
}

/// A connection with at most one request under way, and the times of those that wait for it.
struct Lane {
    stream: TcpStream,
    under_way: Option<Instant>,
    waiting: VecDeque<Instant>,
}

/// How long each request took, in microseconds.
fn send(subject: &Subject, rate: f64, duration: Duration, seed: u64) -> Result<Vec<u32>, String> {
    let io = |error: std::io::Error| error.to_string();
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|error| error.to_string())?;
    let mut lanes = Vec::new();
    for number in 0..CONNECTIONS {
        let stream = TcpStream::connect(subject.address).map_err(io)?;
        stream.set_nodelay(true).map_err(io)?;
        stream.set_nonblocking(true).map_err(io)?;
        let data = epoll::EventData::new_u64(number as u64);
        epoll::add(&epoll, &stream, data, epoll::EventFlags::IN).map_err(|error| error.to_string())?;
        lanes.push(Lane { stream, under_way: None, waiting: VecDeque::new() });
    }
    let (started, between) = (Instant::now(), Duration::from_secs_f64(1.0 / rate));
    let (counted_from, end) = (started + WARM_UP, started + WARM_UP + duration);
    let mut client = Client { subject, ids: SplitMix(seed), counted_from, took: Vec::new() };
    let mut events = [const { MaybeUninit::uninit() }; CONNECTIONS];
    let mut arrivals = 0_u32;
    loop {
        let now = Instant::now();
        let mut next = started + between * arrivals;
        while next <= now && next < end {
            client.arrive(&mut lanes[arrivals as usize % CONNECTIONS], next)?;
            arrivals += 1;
            next = started + between * arrivals;
        }
        if next >= end && lanes.iter().all(|lane| lane.under_way.is_none()) {
            return Ok(client.took);
        }
        if now > end + Duration::from_secs(10) {
            return Err("answers are missing".to_owned());
        }
        let wait = if next < end { next.saturating_duration_since(now) } else { Duration::from_secs(1) };
        let wait = Timespec { tv_sec: wait.as_secs().cast_signed(), tv_nsec: wait.subsec_nanos().into() };
        let (ready, _) = epoll::wait(&epoll, &mut events, Some(&wait)).map_err(|error| error.to_string())?;
        for event in ready {
            client.answered(&mut lanes[event.data.u64() as usize])?;
        }
    }
}

struct Client<'a> {
    subject: &'a Subject,
    ids: SplitMix,
    counted_from: Instant,
    took: Vec<u32>,
}

impl Client<'_> {
    fn arrive(&mut self, lane: &mut Lane, time: Instant) -> Result<(), String> {
        if lane.under_way.is_some() {
            lane.waiting.push_back(time);
            return Ok(());
        }
        lane.under_way = Some(time);
        let id = self.ids.next().expect("it never ends") % IDS;
        let request = format!("GET {}{id} HTTP/1.1\r\nhost: localhost\r\n\r\n", self.subject.request.prefix);
        // One write is enough: the request is small, and no other is under way.
        lane.stream.write_all(request.as_bytes()).map_err(|error| error.to_string())
    }

    fn answered(&mut self, lane: &mut Lane) -> Result<(), String> {
        let mut answer = [0; 1024];
        let read = match lane.stream.read(&mut answer) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        let answer = &answer[..read];
        // One read is enough: answers are far smaller than a packet.
        if !answer.starts_with(b"HTTP/1.1 200") || !answer.ends_with(b"\r\n\r\nok") {
            return Err(format!("an answer is {:?}", String::from_utf8_lossy(answer)));
        }
        let time = lane.under_way.take().ok_or("an answer to nothing")?;
        if time >= self.counted_from {
            self.took.push(time.elapsed().as_micros() as u32);
        }
        match lane.waiting.pop_front() {
            Some(time) => self.arrive(lane, time),
            None => Ok(()),
        }
    }
}
