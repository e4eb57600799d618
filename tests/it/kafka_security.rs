//! Kafka with TLS, passwords and rights, on real brokers. Only a build with the feature `kafka-tls` has these tests.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::support::certificates::make_certificates;
use crate::support::kafka::{Kafka, SCRAM_USER, assert_each_once, make, namespace, wait_recorded};
use crate::support::process::run;
use crate::support::server::Server;
use crate::support::tools::{in_repository, succeeds};
use crate::support::{free_port, wait_until};

/// The name and the password of the only user of PLAIN.
const PLAIN_USER: [&str; 2] = ["paula", "the password of paula"];

/// A broker that clients reach with TLS only, and the files of a client.
struct Secured {
    _kafka: Kafka,
    address: String,
    /// Where a client needs neither TLS nor a password, and may do everything.
    inside: String,
    namespace: String,
    files: TempDir,
}

impl Secured {
    /// A broker with these settings, and the topics of a service.
    async fn start(name: &str, protocol: &str, settings: &[&str]) -> Self {
        let files = tempfile::tempdir().unwrap();
        make_certificates(files.path());
        let read = |name: &str| std::fs::read_to_string(files.path().join(name)).unwrap();
        let store = files.path().join("store.pem");
        std::fs::write(&store, [read("server.key"), read("server.pem")].concat()).unwrap();
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let mut all = vec![
            format!(
                "listener.security.protocol.map=CLIENTS:{protocol},CONTROLLER:PLAINTEXT,BROKER:PLAINTEXT"
            ),
            "ssl.keystore.type=PEM".to_owned(),
            format!("ssl.keystore.location={}", path(&store)),
            "ssl.truststore.type=PEM".to_owned(),
            format!("ssl.truststore.location={}", path(&files.path().join("ca.pem"))),
        ];
        all.extend(settings.iter().map(|setting| (*setting).to_owned()));
        let port = free_port();
        let (kafka, inside) = (Kafka::start_with(port, &all), format!("127.0.0.3:{}", port ^ 2));
        let namespace = namespace(name);
        for topic in ["unique-counts", "counter-counts"] {
            make(&inside, &format!("{namespace}.{topic}"), 1, &[]).await;
        }
        Self { _kafka: kafka, address: format!("127.0.0.1:{port}"), inside, namespace, files }
    }

    /// A broker with two kinds of passwords.
    async fn with_passwords(name: &str, settings: &[&str]) -> Self {
        let plain = format!(
            "listener.name.clients.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
             required user_{}=\"{}\";",
            PLAIN_USER[0], PLAIN_USER[1]
        );
        let scram = "listener.name.clients.scram-sha-512.sasl.jaas.config=\
                     org.apache.kafka.common.security.scram.ScramLoginModule required;";
        let both = "listener.name.clients.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512";
        Self::start(name, "SASL_SSL", &[&[&*plain, scram, both], settings].concat()).await
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// The flags of a client with these options. It trusts the authority of the broker.
    fn args(&self, options: &[String]) -> Vec<String> {
        let mut args =
            ["--kafka-brokers", &self.address, "--namespace", &self.namespace].map(str::to_owned).to_vec();
        let authority = format!("ssl.ca.location={}", self.file("ca.pem").display());
        for option in [authority].iter().chain(options) {
            args.extend(["--kafka-option".to_owned(), option.clone()]);
        }
        args
    }

    /// What `headcount check` says of Kafka, and whether it found nothing wrong.
    fn check(&self, options: &[String]) -> (bool, String) {
        let args = self.args(options);
        let output = run(&[&["check"], &args.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat());
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    }

    #[track_caller]
    fn assert_refused(&self, options: &[String], words: &[&str]) {
        let (is_well, said) = self.check(options);
        assert!(!is_well, "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} in:\n{said}");
        }
    }

    async fn serve(&self, options: &[String]) -> Server {
        let args = self.args(options);
        Server::start(
            &[&["--window", "1s"], &args.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat(),
        )
        .await
    }

    fn topic(&self) -> String {
        format!("{}.unique-counts", self.namespace)
    }

    /// A service with these options publishes windows, and `check` finds nothing wrong.
    async fn assert_works(&self, options: &[String]) {
        let (is_well, said) = self.check(options);
        assert!(is_well, "{said}");
        let mut server = self.serve(options).await;
        assert_eq!(server.get("/api/verve/accept?id=1").await.body, "ok");
        server.wait_closed(2).await;
        let ended = server.stop().await;
        assert!(ended.success(), "{:#?}", server.log());
        let records = wait_recorded(&self.inside, &self.topic(), 1).await;
        assert_each_once(&records, 1);
        assert!(records.iter().any(|record| record.count() == 1), "{records:?}");
    }

    /// Lets the user of PLAIN do something.
    fn allow(&self, kind: &str, name: &str, operations: &[&str]) {
        let mut python = Command::new("python3");
        python.env("PYTHONPATH", in_repository("target/tools")).arg(in_repository("tests/kafka/allow.py"));
        python.args([&*self.inside, PLAIN_USER[0], kind, name]).args(operations);
        succeeds(&mut python);
    }
}

fn options(pairs: &[(&str, &str)]) -> Vec<String> {
    pairs.iter().map(|(key, value)| format!("{key}={value}")).collect()
}

/// Options of a user with a password.
fn login(mechanism: &str, [user, password]: [&str; 2]) -> Vec<String> {
    options(&[
        ("security.protocol", "sasl_ssl"),
        ("sasl.mechanism", mechanism),
        ("sasl.username", user),
        ("sasl.password", password),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_an_authority_of_ones_own() {
    let secured = Secured::start("tls", "SSL", &[]).await;
    let tls = options(&[("security.protocol", "ssl")]);
    secured.assert_works(&tls).await;
    let other = tempfile::tempdir().unwrap();
    make_certificates(other.path());
    let unknown = format!("ssl.ca.location={}", other.path().join("ca.pem").display());
    secured.assert_refused(&[&tls[..], &[unknown]].concat(), &["certificate verify failed"]);
    // A client without TLS does not learn more than that.
    secured.assert_refused(&options(&[("security.protocol", "plaintext")]), &["if the brokers want TLS"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn mutual_tls() {
    let secured = Secured::start("mutual", "SSL", &["listener.name.clients.ssl.client.auth=required"]).await;
    let tls = options(&[("security.protocol", "ssl")]);
    let certificate = options(&[
        ("ssl.certificate.location", secured.file("server.pem").to_str().unwrap()),
        ("ssl.key.location", secured.file("server.key").to_str().unwrap()),
    ]);
    secured.assert_works(&[&tls[..], &certificate].concat()).await;
    secured.assert_refused(&tls, &["ertificate"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn users_with_passwords() {
    let secured = Secured::with_passwords("passwords", &[]).await;
    for (mechanism, user) in [("PLAIN", PLAIN_USER), ("SCRAM-SHA-512", SCRAM_USER)] {
        secured.assert_works(&login(mechanism, user)).await;
        let wrong = login(mechanism, [user[0], "another password"]);
        secured.assert_refused(&wrong, &["uthentication"]);
        let (_, said) = secured.check(&wrong);
        assert!(!said.contains("another password"), "{said}");
    }
}

/// A password in a file is wrong at the start. The service publishes once the file is right.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_in_a_file_is_read_again() {
    let secured = Secured::with_passwords("rotated", &[]).await;
    let file = secured.file("password");
    std::fs::write(&file, "another password\n").unwrap();
    let by_file = format!("file:{}", file.display());
    let mut server = secured.serve(&login("SCRAM-SHA-512", [SCRAM_USER[0], &by_file])).await;
    wait_until("a wrong password to be reported", async || {
        let is_it = |event: &serde_json::Value| event.to_string().contains("uthentication");
        server.log().iter().any(|event| event["level"] == "WARN" && is_it(event))
    })
    .await;
    std::fs::write(&file, format!("{}\n", SCRAM_USER[1])).unwrap();
    let records = wait_recorded(&secured.inside, &secured.topic(), 1).await;
    assert_each_once(&records, 1);
    assert!(server.stop().await.success());
}

/// `check` and the log of the service name what a user may not use.
#[tokio::test(flavor = "multi_thread")]
async fn missing_rights_are_named() {
    let authorizer = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer";
    let secured = Secured::with_passwords("rights", &[authorizer, "super.users=User:ANONYMOUS"]).await;
    let paula = login("PLAIN", PLAIN_USER);
    let (topic, counters) = (secured.topic(), format!("{}.counter-counts", secured.namespace));
    let server = secured.serve(&paula).await;

    secured.assert_refused(&paula, &["lacks the right to describe the topic", &topic]);
    secured.allow("TOPIC", &topic, &["DESCRIBE"]);
    let id = format!("lacks the right to write with the transactional id headcount-check.{topic}");
    secured.assert_refused(&paula, &[&id]);
    for of in ["headcount", "headcount-check"] {
        secured.allow("TRANSACTIONAL_ID", &format!("{of}.{topic}"), &["DESCRIBE", "WRITE"]);
    }
    secured.assert_refused(&paula, &["did not take a record", &topic, "opic authorization failed"]);
    secured.allow("TOPIC", &topic, &["WRITE"]);
    secured.assert_refused(&paula, &["lacks the right to read in the group headcount.ledger"]);
    secured.allow("GROUP", "headcount.ledger", &["READ"]);
    secured.assert_refused(&paula, &["FAIL record", "opic authorization failed"]);
    secured.allow("TOPIC", &topic, &["READ"]);
    secured.assert_refused(&paula, &["lacks the right to describe the topic", &counters]);
    secured.allow("TOPIC", &counters, &["DESCRIBE"]);
    secured.assert_refused(&paula, &["did not take a record", &counters, "opic authorization failed"]);
    secured.allow("TOPIC", &counters, &["WRITE"]);
    let (is_well, said) = secured.check(&paula);
    assert!(is_well, "{said}");

    // The service has tried all the time.
    let records = wait_recorded(&secured.inside, &topic, 1).await;
    assert_each_once(&records, 1);
    let is_named = |event: &serde_json::Value| {
        event["level"] == "WARN" && event.to_string().contains("authorization failed")
    };
    assert!(server.log().iter().any(is_named), "{:?}", server.log());
}
