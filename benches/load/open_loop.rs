//! An open-loop client: it sends requests at a fixed rate.
//!
//! A closed-loop client sends its next request after the last answer. So it slows down with the server, and hides the
//! delay that independent clients would see (Tene's "coordinated omission"). Here each request has a scheduled time, at
//! equal distances, and the requests use the connections in turn. A request waits while its connection is busy. Its
//! latency counts from its scheduled time, not from when it was sent.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::ops::Range;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};

use crate::subject::Subject;
use crate::support::SplitMix;

const CONNECTIONS: usize = 64;
/// The ids are drawn from so many, from 0 on.
pub const IDS: u64 = 1_000_000;

/// A request: when it was due, and how long after that its answer came.
#[derive(Debug, Clone, Copy)]
pub struct Answered {
    pub due: Instant,
    pub micros: u32,
}

/// About how many different ids these requests had.
pub fn unique(answered: &[Answered], due: &Range<Instant>) -> f64 {
    let requests = answered.iter().filter(|answered| due.contains(&answered.due)).count();
    -(IDS as f64) * (-(requests as f64) / IDS as f64).exp_m1()
}

/// How long requests took, in microseconds, the shortest first.
pub struct Latencies(Vec<u32>);

impl Latencies {
    /// Of the requests that were due in this period.
    pub fn of(answered: &[Answered], due: &Range<Instant>) -> Self {
        let answered = answered.iter().filter(|answered| due.contains(&answered.due));
        let mut micros: Vec<_> = answered.map(|answered| answered.micros).collect();
        micros.sort_unstable();
        Self(micros)
    }

    /// The milliseconds that so many of a thousand requests took at most.
    pub fn millis(&self, of_a_thousand: usize) -> f64 {
        f64::from(self.0[self.0.len() * of_a_thousand / 1000]) / 1e3
    }
}

/// A connection with at most one request under way, and the times of those that wait for it.
struct Lane {
    stream: TcpStream,
    under_way: Option<Instant>,
    waiting: VecDeque<Instant>,
}

/// Sends random ids, `rate` of them a second. If the subject's requests have counters, each names one of them, at random.
pub fn send(subject: &Subject, rate: f64, time: Range<Instant>, seed: u64) -> Result<Vec<Answered>, String> {
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
    let (Range { start, end }, between) = (time, Duration::from_secs_f64(1.0 / rate));
    // A list that grows would hold up the client.
    let answered = Vec::with_capacity(((end - start).as_secs_f64() * rate) as usize + 1);
    let mut client = Client { subject, ids: SplitMix(seed), answered };
    let mut events = [const { MaybeUninit::uninit() }; CONNECTIONS];
    let mut arrivals = 0_u32;
    loop {
        let now = Instant::now();
        let mut next = start + between * arrivals;
        while next <= now && next < end {
            client.arrive(&mut lanes[arrivals as usize % CONNECTIONS], next)?;
            arrivals += 1;
            next = start + between * arrivals;
        }
        if next >= end && lanes.iter().all(|lane| lane.under_way.is_none()) {
            return Ok(client.answered);
        }
        if now > end + Duration::from_secs(10) {
            return Err("answers are missing".to_owned());
        }
        let wait = if next < end { next.saturating_duration_since(now) } else { Duration::from_secs(1) };
        let wait = Timespec { tv_sec: wait.as_secs().cast_signed(), tv_nsec: wait.subsec_nanos().into() };
        let (ready, _) = epoll::wait(&epoll, &mut events, Some(&wait)).map_err(|error| error.to_string())?;
        for event in ready {
            client.read(&mut lanes[event.data.u64() as usize])?;
        }
    }
}

struct Client<'a> {
    subject: &'a Subject,
    ids: SplitMix,
    answered: Vec<Answered>,
}

impl Client<'_> {
    fn arrive(&mut self, lane: &mut Lane, time: Instant) -> Result<(), String> {
        if lane.under_way.is_some() {
            lane.waiting.push_back(time);
            return Ok(());
        }
        lane.under_way = Some(time);
        let request = &self.subject.request;
        let mut random = || self.ids.next().expect("it never ends");
        let id = random() % IDS;
        let counter = match request.counters {
            0 => String::new(),
            counters => format!("&counter=campaign-{}", random() % counters),
        };
        let request = format!("GET {}{id}{counter} HTTP/1.1\r\nhost: localhost\r\n\r\n", request.prefix);
        // One write is enough: the request is small, and no other is under way.
        lane.stream.write_all(request.as_bytes()).map_err(|error| error.to_string())
    }

    fn read(&mut self, lane: &mut Lane) -> Result<(), String> {
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
        let due = lane.under_way.take().ok_or("an answer to nothing")?;
        self.answered.push(Answered { due, micros: due.elapsed().as_micros() as u32 });
        match lane.waiting.pop_front() {
            Some(time) => self.arrive(lane, time),
            None => Ok(()),
        }
    }
}
