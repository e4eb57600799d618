//! The guard admits endpoints: every special-purpose block, and every spelling of its addresses.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use headcount::callback::guard::{Allow, Guard, MAX_URL_LEN, Refused};
use ipnet::IpNet;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Admitted,
    Invalid,
    Forbidden,
}

use Verdict::{Admitted, Forbidden as No, Invalid};

/// The registries of IANA, those blocks that are not globally reachable, with multicast.
const CLOSED_V4: &[&str] = &[
    "0.0.0.0/8",
    "0.0.0.0/32",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.0.0/29",
    "192.0.0.8/32",
    "192.0.0.9/32",
    "192.0.0.10/32",
    "192.0.0.170/32",
    "192.0.0.171/32",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "255.255.255.255/32",
];
const OPEN_V4: &[&str] = &["192.31.196.0/24", "192.52.193.0/24", "192.175.48.0/24"];
const CLOSED_V6: &[&str] = &[
    "::/128",
    "::1/128",
    "::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "100:0:0:1::/64",
    "2001::/32",
    "2001:1::1/128",
    "2001:1::2/128",
    "2001:1::3/128",
    "2001:2::/48",
    "2001:10::/28",
    "2001:20::/28",
    "2001:30::/28",
    "2001:db8::/32",
    "2002::/16",
    "3fff::/20",
    "5f00::/16",
    "4000::/3",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
];
const OPEN_V6: &[&str] = &["2001:3::/32", "2001:4:112::/48", "2620:4f:8000::/48"];
/// Public IPv6 addresses next to the blocks.
const NEIGHBOURS_V6: &[&str] = &[
    "2000::",
    "2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "2001:200::",
    "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff",
    "2001:db9::",
    "2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "2003::",
    "2620:4f:7fff:ffff:ffff:ffff:ffff:ffff",
    "2620:4f:8001::",
    "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "3fff:1000::",
    "3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "2606:4700:4700::1111",
    "2a00:1450:4001:82a::200e",
];

/// URLs as clients may spell them.
const SPELLINGS: &[(&str, Verdict)] = &[
    // Common URLs.
    ("http://example.com", Admitted),
    ("https://example.com/", Admitted),
    ("HTTPS://EXAMPLE.COM/Path?query=1&x=%20", Admitted),
    ("https://example.com:443/", Admitted),
    ("http://example.com:80/", Admitted),
    ("http://example.com:1024/", Admitted),
    ("http://example.com:65535/", Admitted),
    ("https://example.com:80/", Admitted),
    ("http://example.com:8080/", Admitted),
    ("http://example.com./", Admitted),
    ("http://bücher.example/", Admitted),
    ("http://例え.テスト/", Admitted),
    ("http://xn--bcher-kva.example/", Admitted),
    ("http://a_b.example.com/", Admitted),
    ("http://8.8.8.8/", Admitted),
    ("http://134744072/", Admitted),
    ("http://0x08080808/", Admitted),
    ("http://8.8.2056/", Admitted),
    ("http://[2606:4700:4700::1111]/", Admitted),
    ("http://[2606:4700:4700:0:0:0:0:1111]:8443/", Admitted),
    ("http://example.com/?", Admitted),
    ("http:example.com", Admitted),
    ("http:/example.com", Admitted),
    ("http:\\\\example.com\\x", Admitted),
    (" http://example.com ", Admitted),
    // This machine.
    ("http://127.0.0.1", No),
    ("http://127.0.0.1:8080/api/verve/accept?id=1", No),
    ("http://127.1", No),
    ("http://127.0.1", No),
    ("http://127.255.255.254", No),
    ("http://0177.0.0.1", No),
    ("http://0177.0000.0000.0001", No),
    ("http://00000177.0.0.1", No),
    ("http://0x7f.0.0.1", No),
    ("http://0x7f.0x0.0x0.0x1", No),
    ("http://0X7F.1", No),
    ("http://0x7f000001", No),
    ("http://2130706433", No),
    ("http://017700000001", No),
    ("http://127.0.0.1.", No),
    ("http://127.0.0.0x1", No),
    ("http://①②⑦.0.0.1", No),
    ("http://127。0。0。1", No),
    ("http://127｡0｡0｡1", No),
    ("http://１２７.0.0.1", No),
    ("http://%31%32%37.0.0.1", No),
    ("http://127.0.0.1%2e", No),
    ("http://127%2e0%2e0%2e1", No),
    ("http:127.0.0.1", No),
    ("http:/127.0.0.1", No),
    ("http:///127.0.0.1", No),
    ("http:\\\\127.0.0.1\\", No),
    ("\thttp://127.0.0.1\n", No),
    ("http://127.0.\n0.1", No),
    ("http://0", No),
    ("http://0.0.0.0", No),
    ("http://0x0", No),
    ("http://00", No),
    ("http://[::1]", No),
    ("http://[::1]:8080/", No),
    ("http://[0:0:0:0:0:0:0:1]", No),
    ("http://[0000:0000:0000:0000:0000:0000:0000:0001]", No),
    ("http://[::]", No),
    ("http://[::ffff:127.0.0.1]", No),
    ("http://[::ffff:7f00:1]", No),
    ("http://[0:0:0:0:0:ffff:127.0.0.1]", No),
    ("http://[::FFFF:7F00:0001]", No),
    ("http://[::127.0.0.1]", No),
    ("http://[::ffff:0:127.0.0.1]", No),
    ("http://[64:ff9b::127.0.0.1]", No),
    ("http://[64:ff9b::7f00:1]", No),
    ("http://[64:ff9b:1::127.0.0.1]", No),
    ("http://[2002:7f00:1::]", No),
    ("http://localhost", No),
    ("http://LOCALHOST", No),
    ("http://LocalHost.:3000/", No),
    ("http://localhost:6379", No),
    ("http://foo.localhost", No),
    ("http://a.b.localhost.", No),
    ("http://loc%61lhost", No),
    ("http://ⓛocalhost", No),
    // The network that it is in.
    ("http://10.0.0.1", No),
    ("http://10.1", No),
    ("http://012.0.0.1", No),
    ("http://167772161", No),
    ("http://172.16.0.1", No),
    ("http://172.31.255.255", No),
    ("http://192.168.0.1:8443", No),
    ("http://192.168.257", No),
    ("http://3232235777", No),
    ("http://100.100.100.200/latest/meta-data/", No),
    ("http://169.254.169.254/latest/meta-data/iam/", No),
    ("http://169.254.43518/", No),
    ("http://0xa9fea9fe/", No),
    ("http://2852039166/", No),
    ("http://0251.0376.0251.0376/", No),
    ("http://[::ffff:169.254.169.254]/", No),
    ("http://[::ffff:a9fe:a9fe]/", No),
    ("http://[64:ff9b::a9fe:a9fe]/", No),
    ("http://[fd00:ec2::254]/latest/meta-data/", No),
    ("http://[fe80::1]/", No),
    ("http://[fec0::1]/", No),
    ("http://[fc00::]/", No),
    ("http://[ff02::1]/", No),
    ("http://255.255.255.255/", No),
    ("http://4294967295/", No),
    ("http://224.0.0.251/", No),
    // Other forbidden parts of a URL.
    ("http://user@example.com/", No),
    ("http://user:password@example.com/", No),
    ("http://:password@example.com/", No),
    ("http://example.com@127.0.0.1/", No),
    ("http://8.8.8.8%40127.0.0.1/", Invalid),
    ("http://127.0.0.1@example.com/", No),
    ("http://example.com#fragment", No),
    ("http://example.com/#@127.0.0.1", No),
    ("http://example.com#", No),
    ("http://example.com:0/", No),
    ("http://example.com:22/", No),
    ("http://example.com:25/", No),
    ("http://example.com:81/", No),
    ("http://example.com:444/", No),
    ("http://example.com:1023/", No),
    ("https://8.8.8.8:53/", No),
    // Invalid URLs.
    ("", Invalid),
    ("example.com", Invalid),
    ("//example.com", Invalid),
    ("/api/verve/accept?id=1", Invalid),
    ("http://", Invalid),
    ("http://./", Invalid),
    ("http:// /", Invalid),
    ("http://exa mple.com/", Invalid),
    ("http://example.com:65536/", Invalid),
    ("http://example.com:port/", Invalid),
    ("http://example.com:-1/", Invalid),
    ("http://[::1", Invalid),
    ("http://::1/", Invalid),
    ("http://[fe80::1%25eth0]/", Invalid),
    ("http://[fe80::1%eth0]/", Invalid),
    ("http://[::ffff:127.0.0.256]/", Invalid),
    ("http://256.256.256.256/", Invalid),
    ("http://127.0.0.0.1/", Invalid),
    ("http://4294967296/", Invalid),
    ("http://0x100000000/", Invalid),
    ("http://08.0.0.1/", Invalid),
    ("http://1.2.3.4.5/", Invalid),
    ("http://example.0x7f/", Invalid),
    ("http://exa%00mple.com/", Invalid),
    ("http://exam\u{0}ple.com/", Invalid),
    ("http://a<b/", Invalid),
    ("ftp://example.com/", Invalid),
    ("file:///etc/passwd", Invalid),
    ("gopher://127.0.0.1:6379/_", Invalid),
    ("dict://127.0.0.1:11211/stat", Invalid),
    ("ws://example.com/", Invalid),
    ("javascript:alert(1)", Invalid),
    ("data:text/plain,x", Invalid),
    ("unix:///run/docker.sock", Invalid),
    ("http+unix://%2Frun%2Fdocker.sock/", Invalid),
    ("redis://127.0.0.1:6379", Invalid),
    ("blob:http://example.com/x", Invalid),
    ("view-source:http://example.com", Invalid),
];

fn guard(allow: &[&str]) -> Guard {
    let allow = allow.iter().map(|allow| allow.parse::<Allow>().unwrap()).collect();
    Guard::new(true, allow, vec!["0.0.0.0:8080".parse().unwrap()])
}

fn verdict(guard: &Guard, url: &str) -> Verdict {
    match guard.admit(url) {
        Ok(_) => Admitted,
        Err(Refused::Invalid) => Invalid,
        Err(Refused::Forbidden(_)) => No,
    }
}

fn url_of(address: IpAddr) -> String {
    format!("https://{}/hook?x=1", SocketAddr::new(address, 443))
}

/// First, middle and last address of a block.
fn of_block(block: &str) -> [IpAddr; 3] {
    let block: IpNet = block.parse().unwrap();
    let middle = match (block.network(), block.broadcast()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            Ipv4Addr::from_bits(first.to_bits() + (last.to_bits() - first.to_bits()) / 2).into()
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            Ipv6Addr::from_bits(first.to_bits() + (last.to_bits() - first.to_bits()) / 2).into()
        }
        _ => unreachable!("a block is of one family"),
    };
    [block.network(), middle, block.broadcast()]
}

/// The addresses just outside an IPv4 block that are in no other.
fn beside(block: &str) -> Vec<IpAddr> {
    let IpNet::V4(block) = block.parse().unwrap() else { return Vec::new() };
    let before = block.network().to_bits().checked_sub(1);
    let after = block.broadcast().to_bits().checked_add(1);
    let in_another = |address: &IpAddr| {
        CLOSED_V4.iter().any(|block| block.parse::<IpNet>().is_ok_and(|block| block.contains(address)))
    };
    let beside = [before, after].into_iter().flatten().map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)));
    beside.filter(|address| !in_another(address)).collect()
}

/// Addresses of IPv6 that stand for one of IPv4.
fn embedding(address: Ipv4Addr) -> [(IpAddr, &'static str); 5] {
    let bits = u128::from(address.to_bits());
    let v6 = |bits: u128| IpAddr::V6(Ipv6Addr::from_bits(bits));
    [
        (v6(0xffff << 32 | bits), "mapped"),
        (v6(bits), "compatible"),
        (v6(0x2002 << 112 | bits << 80 | 1), "6to4"),
        // The client's address is inverted.
        (v6(0x2001_0000 << 96 | 0x0808_0808 << 64 | 0x8000 << 48 | (bits ^ 0xffff_ffff)), "Teredo"),
        (v6(0x0064_ff9b << 96 | bits), "NAT64"),
    ]
}

#[test]
fn every_address_has_the_right_verdict() {
    let guard = guard(&[]);
    let mut rows: BTreeMap<String, Verdict> = BTreeMap::new();
    for block in CLOSED_V4.iter().chain(CLOSED_V6) {
        rows.extend(of_block(block).map(|address| (url_of(address), No)));
        rows.extend(beside(block).into_iter().map(|address| (url_of(address), Admitted)));
    }
    for block in OPEN_V4.iter().chain(OPEN_V6) {
        rows.extend(of_block(block).map(|address| (url_of(address), Admitted)));
    }
    rows.extend(NEIGHBOURS_V6.iter().map(|address| (url_of(address.parse().unwrap()), Admitted)));
    for closed in ["127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.1.1", "0.0.0.0", "224.0.0.1"] {
        rows.extend(embedding(closed.parse().unwrap()).map(|(address, _)| (url_of(address), No)));
    }
    for open in ["8.8.8.8", "1.1.1.1"] {
        for (address, how) in embedding(open.parse().unwrap()) {
            // 6to4 and Teredo use unknown relays. IPv4-compatible addresses are not routed.
            let verdict = if matches!(how, "mapped" | "NAT64") { Admitted } else { No };
            rows.insert(url_of(address), verdict);
        }
    }
    assert!(rows.len() >= 170, "{} addresses", rows.len());
    for (url, expected) in &rows {
        assert_eq!(verdict(&guard, url), *expected, "{url}");
    }
    println!("{} addresses", rows.len());
}

#[test]
fn every_spelling_has_the_right_verdict() {
    let long = format!("http://example.com/{}", "x".repeat(MAX_URL_LEN));
    let encoded = format!("http://example.com/{}", "é".repeat(MAX_URL_LEN / 4));
    assert!(SPELLINGS.len() >= 130, "{} spellings", SPELLINGS.len());
    let guard = guard(&[]);
    // White space before a URL is ignored, but the URL keeps its memory.
    let padded = " ".repeat(MAX_URL_LEN) + "http://example.com";
    let dots = format!("http://example.com/{}", "a/../".repeat(MAX_URL_LEN / 4));
    let too_long = [&long, &encoded, &padded, &dots].map(|url| (&**url, Invalid));
    for (url, expected) in SPELLINGS.iter().chain(&too_long) {
        assert_eq!(verdict(&guard, url), *expected, "{url:?}");
    }
    println!("{} spellings", SPELLINGS.len());
}

#[test]
fn only_allowed_addresses_are_admitted() {
    for (allow, url, expected) in [
        ("127.0.0.0/8", "http://127.0.0.1:9000/", Admitted),
        ("127.0.0.0/8", "http://[::ffff:127.0.0.1]:9000/", Admitted),
        ("127.0.0.0/8", "http://localhost:9000/", Admitted),
        ("127.0.0.0/8", "http://[::1]:9000/", No),
        ("127.0.0.0/8", "http://10.0.0.1:9000/", No),
        ("127.0.0.0/8", "http://127.0.0.1:22/", No),
        ("127.0.0.0/8", "http://user@127.0.0.1:9000/", No),
        ("127.0.0.0/8", "http://127.0.0.1:8080/", No),
        ("0.0.0.0/0", "http://0.0.0.0:8080/", No),
        ("0.0.0.0/0", "http://127.77.1.2:8080/api/verve/accept?id=1", No),
        ("0.0.0.0/0", "http://10.255.255.1:8080/", Admitted),
        ("::ffff:10.1.2.3", "http://10.1.2.3/", Admitted),
        ("10.1.2.3", "http://10.1.2.3/", Admitted),
        ("10.1.2.3", "http://10.1.2.4/", No),
        ("10.1.2.3/24", "http://10.1.2.4/", Admitted),
        ("fd00::/8", "http://[fd12:3456::1]/", Admitted),
        ("[::1]", "http://[::1]:9000/", Admitted),
        ("[::1]", "http://localhost:9000/", No),
        ("localhost", "http://LOCALHOST.:9000/", Admitted),
        ("localhost", "http://a.localhost:9000/", No),
        ("*.localhost", "http://a.b.localhost:9000/", Admitted),
        ("*.localhost", "http://localhost:9000/", No),
        ("*.localhost", "http://alocalhost:9000/", Admitted),
        ("localhost", "http://127.0.0.1:9000/", No),
        ("HOOKS.Internal.", "http://hooks.internal/", Admitted),
    ] {
        assert_eq!(verdict(&guard(&[allow]), url), expected, "{url} with {allow}");
    }
    // A server that listens on one address is reached by dialling the unspecified address.
    let everything = ["0.0.0.0/0", "::/0"].map(|block| block.parse().unwrap()).to_vec();
    let on_one = Guard::new(true, everything, vec!["127.0.0.1:8080".parse().unwrap()]);
    for url in ["http://0.0.0.0:8080/", "http://[::]:8080/", "http://127.1:8080/"] {
        assert_eq!(verdict(&on_one, url), No, "{url}");
    }
    assert_eq!(verdict(&on_one, "http://0.0.0.0:8081/"), Admitted);
    for bad in ["", "*", "*.", "10.0.0.0/33", "http://a/", "a:80", "a/b", "*.*.a", "a b", ".", "[[::1]]"] {
        let parsed = bad.parse::<Allow>();
        assert!(parsed.is_err(), "{bad:?}: {parsed:?}");
    }
}

#[test]
fn the_guard_can_be_switched_off() {
    let guard = Guard::new(false, vec!["0.0.0.0/0".parse().unwrap()], Vec::new());
    let off = Refused::Forbidden("callbacks are off".to_owned());
    assert_eq!(guard.admit("http://example.com/").unwrap_err(), off);
    assert_eq!(verdict(&guard, "no URL"), Invalid);
}
