//! Bytes that a client should not send.

use super::SplitMix;

/// Valid requests of all kinds. The generator corrupts them.
const REQUESTS: [&[u8]; 16] = [
    b"GET /api/verve/accept?id=42 HTTP/1.1\r\nhost: test\r\n\r\n",
    b"GET /api/verve/accept?id=-7&endpoint=https://example.com/a?b=c HTTP/1.1\r\nhost: test\r\n\r\n",
    b"GET /api/verve/accept?id=1 HTTP/1.1\r\nhost: a\r\n\r\nGET /api/verve/accept?id=2 HTTP/1.1\r\nhost: a\r\n\r\n",
    b"GET /api/verve/accept?id=3 HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",
    b"GET /api/verve/accept?id=4 HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\nhello",
    b"POST /api/verve/accept HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\ncontent-length: 6\r\n\r\n1\n2\n3\n",
    b"POST /api/verve/accept HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 7\r\n\r\n[1,2,3]",
    b"POST /api/verve/accept HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n2\r\n1\n\r\n3;a=b\r\n22\n\r\n0\r\nx: y\r\n\r\n",
    b"POST /api/verve/accept HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n9\n",
    b"POST /api/verve/accept HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n9\n",
    b"GET /api/verve/unique HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n",
    b"HEAD /api/verve/unique HTTP/1.1\r\nhost: test\r\n\r\n",
    b"GET /readyz HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nhost: test\r\naccept: */*\r\n\r\n",
    b"CONNECT test:443 HTTP/1.1\r\nhost: test:443\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nhost: test\r\n\r\n",
];

/// Pieces to insert into a head, or to replace a chunk's size.
const SPLICES: [&[u8]; 16] = [
    b"\r\ntransfer-encoding: chunked",
    b"\r\ntransfer-encoding: chunked, gzip\r\ntransfer-encoding: identity",
    b"\r\ncontent-length: 18446744073709551616",
    b"\r\ncontent-length: 18446744073709551615",
    b"\r\ncontent-length: -1\r\ncontent-length: 3",
    b"\r\nexpect: 100-continue",
    b"\r\nconnection: close, keep-alive, upgrade",
    b"\r\n folded: line",
    b"\r\n: no name",
    b"\r\n\r\n",
    b"\r\n\r\nffffffffffffffff\r\n",
    b"\r\n\r\n-1\r\n\r\n0;\xff\xff\r\n\r\n",
    b"\0\0\0\0",
    b" HTTP/9.9",
    b"?id=99999999999999999999999999999999999999",
    b"?%00%ff%zz&id=%31&=&&id",
];

/// A stream of bytes, the same for the same `seed`: mostly corrupted requests, some noise.
pub fn hostile_bytes(seed: u64) -> Vec<u8> {
    let mut random = Random(SplitMix(seed));
    if random.below(10) == 0 {
        let length = random.below(4_000);
        return random.noise(length);
    }
    let mut bytes = random.pick(&REQUESTS).to_vec();
    for _ in 0..=random.below(4) {
        spoil(&mut bytes, &mut random);
    }
    bytes
}

fn spoil(bytes: &mut Vec<u8>, random: &mut Random) {
    let [at, until] = random.range(bytes.len());
    match random.below(9) {
        0 => {
            for _ in 0..=random.below(8) {
                let (at, bit) = (random.below(bytes.len() + 1), random.below(8));
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << bit;
                }
            }
        }
        1 => bytes.truncate(at),
        2 => drop(bytes.drain(at..until)),
        3 => {
            let times = 1 + random.below(20);
            let again = bytes[at..until].repeat(times);
            insert(bytes, until, &again);
        }
        4 => insert(bytes, at, random.pick(&REQUESTS)),
        5 => bytes.extend_from_slice(random.pick(&REQUESTS)),
        6 => {
            let length = random.below(100);
            insert(bytes, at, &random.noise(length));
        }
        7 => {
            // At the end of a line, where it is most likely to confuse a parser.
            let ends: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at] == b'\r').collect();
            let end = ends.get(random.below(ends.len() + 1)).copied().unwrap_or(at);
            insert(bytes, end, random.pick(&SPLICES));
        }
        _ => {
            let name = random.below(1_000);
            let length = random.below(40_000);
            let header = [b"\r\nx: ".as_slice(), &vec![b'y'; length]].concat();
            let headers = format!("\r\nx: {length}").repeat(name / 5);
            let end = bytes.iter().position(|byte| *byte == b'\r').unwrap_or(at);
            insert(bytes, end, if name.is_multiple_of(2) { &header } else { headers.as_bytes() });
        }
    }
}

fn insert(bytes: &mut Vec<u8>, at: usize, more: &[u8]) {
    bytes.splice(at..at, more.iter().copied());
}

struct Random(SplitMix);

impl Random {
    /// Less than `end`; 0 if that is 0.
    fn below(&mut self, end: usize) -> usize {
        (self.0.next().expect("it never ends") % end.max(1) as u64) as usize
    }

    fn pick<'a>(&mut self, from: &[&'a [u8]]) -> &'a [u8] {
        from[self.below(from.len())]
    }

    /// Two positions within a length, in order.
    fn range(&mut self, length: usize) -> [usize; 2] {
        let mut ends = [self.below(length + 1), self.below(length + 1)];
        ends.sort_unstable();
        ends
    }

    fn noise(&mut self, length: usize) -> Vec<u8> {
        self.0.by_ref().flat_map(u64::to_le_bytes).take(length).collect()
    }
}
