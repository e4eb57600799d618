//! The log, messages, the help, metrics and the process list show no secret.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::support::http::{get, once};
use crate::support::process::{Process, headcount, output_of};
use crate::support::receiver::{Answering, Receiver};
use crate::support::redis::{Flavour, Redis};
use crate::support::{free_port, wait_for};

const ID_KEY: &str = "5ec2e71d0000111122223333c0ffee99";
const API_TOKEN: &str = "tok-never-to-be-shown-0123";
const REDIS_PASSWORD: &str = "pw-redis-never-to-be-shown";
const KAFKA_PASSWORD: &str = "pw-kafka-never-to-be-shown";
const CALLBACK_SECRET: &str = "whsec_bmV2ZXItdG8tYmUtc2hvd24tbm90LWV2ZXI=";
/// The private part of an endpoint's URL, which belongs to the client.
const ENDPOINT_TOKEN: &str = "tok-endpoint-never-to-be-shown";

/// The text of every secret. A flag that takes another one adds it here, to [`Secrets::at`] and to
/// [`WRONG_VALUES`].
const ALL: [&str; 6] = [ID_KEY, API_TOKEN, REDIS_PASSWORD, KAFKA_PASSWORD, CALLBACK_SECRET, ENDPOINT_TOKEN];

/// Every flag that takes a secret, with a value: the environment variable's name, the value before the secret,
/// and the secret, which `file:` may stand for.
struct Secrets {
    flags: Vec<(&'static str, String, String)>,
}

impl Secrets {
    /// The secrets for a Redis at `redis`, with a right or wrong password, and for Kafka.
    fn at(redis: &str, brokers: &str) -> (Self, [String; 2]) {
        let url = redis.replace("redis://", &format!("redis://:{REDIS_PASSWORD}@"));
        let flags = vec![
            ("HEADCOUNT_ID_KEY", String::new(), ID_KEY.to_owned()),
            ("HEADCOUNT_API_TOKEN", String::new(), API_TOKEN.to_owned()),
            ("HEADCOUNT_CALLBACK_SECRET", String::new(), CALLBACK_SECRET.to_owned()),
            ("HEADCOUNT_REDIS_URL", String::new(), url),
            (
                "HEADCOUNT_KAFKA_OPTION",
                // All of librdkafka's messages, including its options.
                "debug=all;security.protocol=sasl_plaintext;sasl.mechanisms=PLAIN;sasl.username=u;sasl.password=".to_owned(),
                KAFKA_PASSWORD.to_owned(),
            ),
        ];
        (Self { flags }, ["--kafka-brokers".to_owned(), brokers.to_owned()])
    }

    fn by_environment(&self, command: &mut Command) {
        for (variable, before, secret) in &self.flags {
            command.env(variable, format!("{before}{secret}"));
        }
    }

    fn by_files(&self, dir: &Path, command: &mut Command) {
        for (index, (variable, before, secret)) in self.flags.iter().enumerate() {
            let file = dir.join(index.to_string());
            fs::write(&file, format!("{secret}\n")).unwrap();
            let flag = variable.trim_start_matches("HEADCOUNT_").to_lowercase().replace('_', "-");
            command.arg(format!("--{flag}")).arg(format!("{before}file:{}", file.display()));
        }
    }
}

#[track_caller]
fn assert_nothing_shown(text: &str, what: &str) {
    for secret in ALL {
        if let Some(at) = text.find(secret) {
            let line = text[..at].lines().last().unwrap_or_default();
            panic!("{what} shows {secret} after {line:?}");
        }
    }
}

/// The whole output of a command that must fail.
#[track_caller]
fn assert_fails_silently(command: &mut Command, what: &str) -> String {
    let output = output_of(command);
    let said =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert!(!output.status.success() && !said.is_empty(), "{what}: {said}");
    assert!(!said.contains("panicked"), "{what}: {said}");
    assert_nothing_shown(&said, what);
    said
}

/// A service that logs everything, into a file.
struct Service {
    process: Process,
    address: std::net::SocketAddr,
    dir: TempDir,
}

impl Service {
    async fn start(mut command: Command, format: &str, dir: TempDir) -> Self {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], free_port()));
        let log = File::create(dir.path().join("log")).unwrap();
        command.args(["--listen", &address.to_string(), "--log-level", "trace", "--log-format", format]);
        command.args(["--window", "1s", "--namespace", "secrets", "--callback-allow", "127.0.0.1"]);
        command.stdout(log.try_clone().unwrap()).stderr(log).stdin(Stdio::null());
        let mut service = Self { process: Process(command.spawn().unwrap()), address, dir };
        wait_for("the service to listen", || {
            assert!(service.process.0.try_wait().unwrap().is_none(), "it ended: {}", service.log());
            service.log().contains("listening").then_some(())
        })
        .await;
        service
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Sends requests with the token, without it, and with nearly the right one. Returns the answers.
    async fn ask(&self, receiver: &Receiver) -> String {
        let with_endpoint = |address| {
            format!(
                "GET /api/verve/accept?id=1&endpoint=http://{address}/{ENDPOINT_TOKEN}%3Ft={ENDPOINT_TOKEN}"
            )
        };
        // One endpoint answers, one refuses.
        let (to_receiver, to_nobody) =
            (with_endpoint(receiver.address), with_endpoint(([127, 0, 0, 1], free_port()).into()));
        let mut answers = Vec::new();
        for token in [API_TOKEN.to_owned(), format!("{API_TOKEN}x"), String::new()] {
            for (head, rest) in [
                ("GET /api/verve/accept?id=1", "\r\n"),
                ("GET /api/verve/accept?id=one", "\r\n"),
                ("GET /api/verve/unique", "\r\n"),
                (&to_receiver, "\r\n"),
                (&to_nobody, "\r\n"),
                ("POST /api/verve/accept", "content-type: text/plain\r\ncontent-length: 2\r\n\r\n5\n"),
            ] {
                let request =
                    format!("{head} HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {token}\r\n{rest}");
                answers.push(format!("{:?}", once(self.address, request.as_bytes()).await));
            }
        }
        for path in ["/metrics", "/livez", "/readyz", "/openapi.json", "/nowhere"] {
            answers.push(format!("{:?}", get(self.address, path).await));
        }
        answers.join("\n")
    }

    async fn wait_for_line(&self, words: &str) {
        wait_for(words, || self.log().contains(words).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_shows_no_secrets() {
    for (format, by_files) in [("text", false), ("json", true)] {
        let mut redis = Redis::start_with(Flavour::Debian, &["--requirepass", REDIS_PASSWORD]);
        // No server listens there.
        let (secrets, kafka) = Secrets::at(&redis.url(), &format!("127.0.0.1:{}", free_port()));
        let dir = tempfile::tempdir().unwrap();
        let mut command = headcount();
        command.args(kafka);
        if by_files {
            secrets.by_files(dir.path(), &mut command);
        } else {
            secrets.by_environment(&mut command);
        }
        let mut service = Service::start(command, format, dir).await;

        let receiver = Receiver::start(Answering::Status(500)).await;
        let answers = service.ask(&receiver).await;
        receiver.wait_received(1).await;
        service.wait_for_line("callback refused").await;
        service.wait_for_line("callback failed").await;
        assert!(answers.contains("200") && answers.contains("401"), "{answers}");
        assert_nothing_shown(&answers, "an answer");
        let process = service.process.0.id();
        let listed = fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap();
        assert!(listed.contains("--kafka-brokers"), "{listed}");
        assert_nothing_shown(&listed, "the process list");

        redis.kill();
        assert_nothing_shown(&service.ask(&receiver).await, "an answer while Redis is away");
        service.wait_for_line("ids are kept here until it is back").await;
        redis.restart();
        service.wait_for_line("writing to Redis again").await;
        service.wait_for_line("sasl").await;
        service.process.signal("TERM");
        service.process.wait();
        let log = service.log();
        assert!(log.contains("stopped") && log.contains("window closed"), "{log}");
        assert!(
            !log.contains("process list") && !log.contains("lists the processes"),
            "nothing to warn about"
        );
        assert_nothing_shown(&log, "the log");
    }
}

/// Errors of a failed connection do not either.
#[test]
fn errors_of_redis_show_no_secrets() {
    let refusing = Redis::start_with(Flavour::Debian, &["--requirepass", "another"]);
    // Redis repeats the arguments of an unknown command.
    let knows_no = |command| {
        let args = ["--requirepass", REDIS_PASSWORD, "--rename-command", command, ""];
        Redis::start_with(Flavour::Debian, &args)
    };
    let (no_auth, no_hello) = (knows_no("AUTH"), knows_no("HELLO"));
    let away = format!("redis://127.0.0.1:{}", free_port());
    let (plain, user) = (format!(":{REDIS_PASSWORD}"), format!("somebody:{REDIS_PASSWORD}"));
    // It repeats only some bytes, so not all of this one.
    let long = format!(":{}", REDIS_PASSWORD.repeat(20));
    for (url, credentials, more, what) in [
        (refusing.url(), &plain, "", "another password"),
        (refusing.url(), &user, "", "another user"),
        (refusing.url(), &plain, "?protocol=resp3", "another password, RESP3"),
        (no_auth.url(), &plain, "", "no AUTH"),
        (no_auth.url(), &long, "", "no AUTH, long"),
        (no_hello.url(), &plain, "?protocol=resp3", "no HELLO"),
        (no_hello.url(), &long, "?protocol=resp3", "no HELLO, long"),
        (away, &plain, "", "nobody there"),
    ] {
        let url = url.replace("redis://", &format!("redis://{credentials}@")) + more;
        for words in [&["serve", "--listen", "127.0.0.1:0", "--log-level", "trace"][..], &["check"]] {
            let mut command = headcount();
            command.args(words).args(["--redis-wait", "300ms"]).env("HEADCOUNT_REDIS_URL", &url);
            let said = assert_fails_silently(&mut command, what);
            assert!(said.contains("cannot use Redis at 127.0.0.1"), "{what}: {said}");
        }
    }
}

/// Flags, and values that they refuse. Braces stand for a secret.
const WRONG_VALUES: [(&str, &str); 19] = [
    ("callback-secret", "{CALLBACK_SECRET}!"),
    ("callback-secret", "{CALLBACK_SECRET}{CALLBACK_SECRET}"),
    ("id-key", "{ID_KEY}0"),
    ("id-key", "x{ID_KEY}"),
    ("id-key", "{ID_KEY}{ID_KEY}"),
    ("id-key", "{ID_KEY} {ID_KEY}"),
    ("api-token", "{API_TOKEN} {API_TOKEN}"),
    ("api-token", "{API_TOKEN}\u{e9}"),
    ("redis-url", "http://:{REDIS_PASSWORD}@127.0.0.1"),
    ("redis-url", "redis://:{REDIS_PASSWORD}@127.0.0.1:port"),
    ("redis-url", "redis://:{REDIS_PASSWORD}@127.0.0.1/db"),
    ("redis-url", "redis://:{REDIS_PASSWORD}@127.0.0.1?protocol=9"),
    ("redis-url", "{REDIS_PASSWORD}"),
    ("kafka-option", "{KAFKA_PASSWORD}"),
    ("kafka-option", "={KAFKA_PASSWORD}"),
    ("kafka-option", "no.such={KAFKA_PASSWORD}"),
    ("kafka-option", "linger.ms={KAFKA_PASSWORD}"),
    ("kafka-option", "security.protocol={KAFKA_PASSWORD}"),
    ("kafka-option", "transactional.id={KAFKA_PASSWORD}"),
];

#[test]
fn messages_about_wrong_values_show_no_secrets() {
    for (flag, value) in WRONG_VALUES {
        let value = value
            .replace("{ID_KEY}", ID_KEY)
            .replace("{API_TOKEN}", API_TOKEN)
            .replace("{CALLBACK_SECRET}", CALLBACK_SECRET)
            .replace("{REDIS_PASSWORD}", REDIS_PASSWORD)
            .replace("{KAFKA_PASSWORD}", KAFKA_PASSWORD);
        let variable = format!("HEADCOUNT_{}", flag.to_uppercase().replace('-', "_"));
        let flag = format!("--{flag}");
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, &value).unwrap();
        let by_file = format!("file:{}", file.path().display());
        let with = |args: &[&str], from_environment: Option<&str>| {
            let mut command = headcount();
            command.args(args).args(["--kafka-brokers", "127.0.0.1:9"]);
            command.envs(from_environment.map(|value| (&variable, value)));
            let said = assert_fails_silently(&mut command, &format!("{args:?}"));
            assert!(said.starts_with("error: ") && said.lines().count() == 1, "{said}");
            said
        };
        for command in ["serve", "check", "verify"] {
            assert!(with(&[command], Some(&value)).contains(&flag));
            assert!(with(&[command, &flag, &value], None).contains(&flag));
        }
        if flag != "--kafka-option" {
            assert!(with(&[&flag, &by_file], None).contains(&flag));
            assert!(with(&[&flag, &value, &flag, &value], None).contains(&flag), "given twice");
        }
        // A typing error in the flag's name.
        with(&[&format!("{flag}s={value}")], None);
    }
}

#[test]
fn help_shows_no_secrets() {
    let (secrets, _) = Secrets::at("redis://127.0.0.1:9", "127.0.0.1:9");
    for args in
        [&["--help"][..], &["-h"], &["help"], &["serve", "--help"], &["check", "-h"], &["verify", "--help"]]
    {
        let mut command = headcount();
        secrets.by_environment(command.args(args));
        let output = output_of(&mut command);
        assert!(output.status.success());
        assert_nothing_shown(&String::from_utf8(output.stdout).unwrap(), "the help");
    }
}

#[test]
fn check_shows_no_secrets() {
    let redis = Redis::start_with(Flavour::Debian, &["--requirepass", REDIS_PASSWORD]);
    let (secrets, kafka) = Secrets::at(&redis.url(), "127.0.0.1:9");
    for command in ["check", "verify"] {
        let mut asked = headcount();
        secrets.by_environment(asked.arg(command).args(&kafka));
        let said = assert_fails_silently(&mut asked, command);
        assert!(command != "check" || said.contains("ok   reachable"), "{said}");
    }
}

/// One line says which flags show a secret, and what to do. Without such a flag there is no line.
#[test]
fn secrets_on_the_command_line_are_warned_about() {
    let warnings = |words: &[&str], args: &[&str]| {
        let mut command = headcount();
        // The port is taken, so the service exits.
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        command.args(words).args(["--listen", &address, "--kafka-brokers", "127.0.0.1:9"]).args(args);
        let said = assert_fails_silently(&mut command, "secrets on the command line");
        said.lines().filter(|line| line.contains("WARN")).map(str::to_owned).collect::<Vec<_>>()
    };
    let url = format!("redis://:{REDIS_PASSWORD}@127.0.0.1:9");
    let option = format!("sasl.password={KAFKA_PASSWORD}");
    let flags: [(&str, &str); 5] = [
        ("--api-token", API_TOKEN),
        ("--callback-secret", CALLBACK_SECRET),
        ("--id-key", ID_KEY),
        ("--kafka-option", &option),
        ("--redis-url", &url),
    ];
    for words in [&[][..], &["serve"]] {
        let all: Vec<_> = flags.iter().flat_map(|(flag, value)| [*flag, *value]).collect();
        let warned = warnings(words, &all);
        assert_eq!(warned.len(), 1, "{warned:?}");
        for (flag, value) in flags {
            let variable = format!("HEADCOUNT_{}", flag[2..].to_uppercase().replace('-', "_"));
            let one = warnings(words, &[flag, value]);
            assert_eq!(one.len(), 1, "{flag}: {one:?}");
            for warned in [&warned[0], &one[0]] {
                for word in [flag, &variable, "file:PATH"] {
                    assert!(warned.contains(word), "{word}: {warned}");
                }
                assert_nothing_shown(warned, "the warning");
            }
            assert_eq!(one[0].matches("--").count(), 1, "no other flag: {one:?}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, ID_KEY).unwrap();
        let path = format!("file:{}", file.path().display());
        let no_secrets =
            ["--id-key", &path, "--redis-url", "redis://user@127.0.0.1:9/1", "--kafka-option", "linger.ms=5"];
        assert_eq!(warnings(words, &no_secrets), Vec::<String>::new());
    }
}
