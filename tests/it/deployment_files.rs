//! The deployment files, as far as tests without Docker can: docker-compose.yml, the Dockerfile, the load balancer and
//! the example for Kubernetes.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::Barrier;

use crate::support::disk::SmallDisk;
use crate::support::fleet::Fleet;
use crate::support::http::Connection;
use crate::support::load::Load;
use crate::support::nginx::Nginx;
use crate::support::process::{headcount, output_of, run};
use crate::support::redis::Redis;
use crate::support::server::{Server, value_of};
use crate::support::tools::{in_repository, python_tool, replaced, succeeds, yaml, yaml_documents};
use crate::support::{free_port, lines, wait_blocking, wait_until};

/// docker-compose.yml with all defaults filled in.
fn compose() -> Value {
    let mut command = python_tool("docker-compose");
    for variable in ["RATE", "COUNTERS", "SKEW"] {
        command.env_remove(variable);
    }
    command.current_dir(in_repository(""));
    let output = output_of(command.args(["--profile", "*", "config", "--format", "json"]));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Not even a warning.
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn services(compose: &Value) -> impl Iterator<Item = (&str, &Value)> {
    compose["services"].as_object().expect("services").iter().map(|(name, service)| (name.as_str(), service))
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().expect("a list").iter().map(|item| item.as_str().expect("a string")).collect()
}

fn text_of(path: &str) -> String {
    std::fs::read_to_string(in_repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn three_ports_are_published_and_only_to_this_machine() {
    let compose = compose();
    let mut published = Vec::new();
    for (name, service) in services(&compose) {
        assert!(service.get("network_mode").is_none(), "{name} has a network of its own");
        for port in service["ports"].as_array().into_iter().flatten() {
            assert_eq!(port["host_ip"], "127.0.0.1", "{name}");
            published.push((port["published"].as_str().expect("a port"), name));
        }
    }
    published.sort_unstable();
    assert_eq!(published, [("3000", "grafana"), ("8080", "nginx"), ("9090", "prometheus")]);
}

#[test]
fn every_service_is_pinned_limited_checked_and_waited_for() {
    let compose = compose();
    let mut names: Vec<_> = services(&compose).map(|(name, _)| name).collect();
    names.sort_unstable();
    assert_eq!(names, ["grafana", "headcount", "kafka", "load", "nginx", "prometheus", "redis"]);
    let dockerfile = text_of("Dockerfile");
    for (name, service) in services(&compose) {
        let (_, tag) = service["image"].as_str().expect("an image").rsplit_once(':').expect("a tag");
        let numbers =
            tag.trim_start_matches('v').split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
        assert_eq!(numbers.count(), 3, "{name}: {tag}");
        if service.get("build").is_some() {
            assert_eq!(tag, env!("CARGO_PKG_VERSION"), "{name}");
            assert!(dockerfile.contains(r#"HEALTHCHECK --interval=10s --timeout=4s --start-period=5s CMD ["headcount", "healthcheck"]"#));
            assert!(service.get("healthcheck").is_none(), "that of the Dockerfile counts");
        } else {
            assert!(strings(&service["healthcheck"]["test"]).len() > 1, "{name}");
        }
        let limits = &service["deploy"]["resources"]["limits"];
        assert!(limits["memory"].as_str().is_some_and(|bytes| bytes.parse::<u64>().is_ok()), "{name}");
        assert!(limits["cpus"].as_f64().is_some_and(|cpus| cpus > 0.0), "{name}: {limits}");
        assert_eq!(service["restart"], "unless-stopped", "{name}");
        assert_eq!(strings(&service["cap_drop"]), ["ALL"], "{name}");
        for (on, how) in service["depends_on"].as_object().into_iter().flatten() {
            assert_eq!(how["condition"], "service_healthy", "{name} on {on}");
        }
    }
    let kafka = compose["services"]["kafka"]["image"].as_str().expect("an image").rsplit_once(':').unwrap().1;
    assert!(
        text_of("tests/kafka/pom.xml").contains(&format!("<version>{kafka}</version>")),
        "not the tested one"
    );
}

/// The path on this machine of a container's file.
fn on_this_machine(service: &Value, path: &str) -> PathBuf {
    let mounts = service["volumes"].as_array().into_iter().flatten();
    let mut found = mounts.filter_map(|mount| {
        let rest = path.strip_prefix(mount["target"].as_str()?)?;
        Some(format!("{}{rest}", mount["source"].as_str()?).into())
    });
    found.next().unwrap_or_else(|| panic!("{path} is not mounted"))
}

#[test]
fn every_mounted_file_exists() {
    let compose = compose();
    for (name, service) in services(&compose) {
        for mount in service["volumes"].as_array().into_iter().flatten() {
            let source = mount["source"].as_str().expect("a source");
            if mount["type"] == "volume" {
                assert!(compose["volumes"].get(source).is_some(), "{name}: {source}");
                continue;
            }
            assert_eq!(mount["read_only"], true, "{name}: {source}");
            assert!(PathBuf::from(source).exists(), "{name}: {source} is not there");
        }
    }
    let services = &compose["services"];
    let home = &services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"];
    let flag =
        strings(&services["prometheus"]["command"])[0].strip_prefix("--config.file=").expect("its flag");
    for (service, path) in [
        ("nginx", "/etc/nginx/nginx.conf"),
        ("load", *strings(&services["load"]["command"]).last().expect("a script")),
        ("prometheus", flag),
        ("grafana", home.as_str().expect("a path")),
    ] {
        let file = on_this_machine(&services[service], path);
        assert!(file.is_file(), "{service}: {} is not there", file.display());
    }
}

/// Starts an instance with this environment, except for addresses of other servers. It must serve.
async fn serves(environment: &[(String, String)]) {
    let help = String::from_utf8(run(&["serve", "--help"]).stdout).expect("UTF-8");
    let redis = Redis::start();
    let mut command = headcount();
    for (name, value) in environment {
        // The help hides the value of a secret.
        let stands_there = ["=", "]"].iter().any(|end| help.contains(&format!("[env: {name}{end}")));
        assert!(stands_there, "{name} stands for no flag");
        let value = match name.as_str() {
            "HEADCOUNT_REDIS_URL" => redis.url(),
            "HEADCOUNT_KAFKA_BROKERS" => format!("127.0.0.1:{}", free_port()),
            "HEADCOUNT_ADMIN_LISTEN" => "127.0.0.1:0".to_owned(),
            _ => value.clone(),
        };
        command.env(name, value);
    }
    command.args(["--listen", "127.0.0.1:0"]);
    let server = Server::run(command).await;
    assert_eq!(server.get("/api/verve/accept?id=42").await.body, "ok");
}

/// Whole seconds.
fn seconds(text: &str) -> u64 {
    text.strip_suffix('s').and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{text}"))
}

/// The deadline for stopping: the default of `--shutdown-timeout`.
const SHUTDOWN_TIMEOUT: u64 = 25;

#[tokio::test]
async fn instances_serve_with_the_environment_of_docker_compose() {
    let compose = compose();
    let service = &compose["services"]["headcount"];
    let environment = service["environment"].as_object().expect("an environment");
    let text = |(name, value): (&String, &Value)| (name.clone(), value.as_str().expect("text").to_owned());
    serves(&environment.iter().map(text).collect::<Vec<_>>()).await;

    assert_eq!(environment["HEADCOUNT_REDIS_URL"], "redis://redis:6379");
    assert_eq!(environment["HEADCOUNT_KAFKA_BROKERS"], "kafka:9092");
    assert!(!environment.contains_key("HEADCOUNT_SHUTDOWN_TIMEOUT"), "the next line has its default");
    assert!(seconds(service["stop_grace_period"].as_str().expect("a time")) > SHUTDOWN_TIMEOUT);
    assert!(service["deploy"]["replicas"].as_u64().is_some_and(|replicas| replicas > 1));
}

/// Grafana shows counters that the load names, and a window has places for all of them.
#[test]
fn the_load_names_the_counters_that_are_shown() {
    const MAX_COUNTERS: u32 = 1000;
    let compose = compose();
    let environment = |service: &str, name: &str| {
        compose["services"][service]["environment"][name].as_str().map(str::to_owned)
    };
    let counters: u32 =
        environment("load", "COUNTERS").and_then(|number| number.parse().ok()).expect("a number");
    assert!(
        (1..=MAX_COUNTERS).contains(&counters)
            && environment("headcount", "HEADCOUNT_MAX_COUNTERS").is_none()
    );
    let shown = environment("headcount", "HEADCOUNT_METRICS_COUNTER").expect("names");
    for name in shown.split(',') {
        let number = name.strip_prefix("campaign-").and_then(|number| number.parse::<u32>().ok());
        assert!(number.is_some_and(|number| (1..=counters).contains(&number)), "{name}");
    }
    assert!(text_of("docker/load.js").contains("return `campaign-${first + 1}`;"), "the name of a counter");
}

/// The content of deploy/kubernetes.yaml.
fn kubernetes() -> Vec<Value> {
    yaml_documents(&in_repository("deploy/kubernetes.yaml"))
}

#[tokio::test]
async fn instances_serve_with_the_environment_of_kubernetes() {
    let objects = kubernetes();
    let of_kind =
        |kind| objects.iter().find(|object| object["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"));
    let deployment = of_kind("Deployment");
    let template = &deployment["spec"]["template"];
    let (labels, pod) = (&template["metadata"]["labels"], &template["spec"]);
    assert_eq!(&deployment["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(&of_kind("Service")["spec"]["selector"], labels);
    assert_eq!(&of_kind("PodDisruptionBudget")["spec"]["selector"]["matchLabels"], labels);
    assert!(text_of("Dockerfile").contains(&format!("USER {0}:{0}", pod["securityContext"]["runAsUser"])));

    let container = &pod["containers"][0];
    let variables = container["env"].as_array().expect("an environment");
    let environment: Vec<(String, String)> = variables
        .iter()
        .map(|variable| {
            let value = variable["value"].as_str().unwrap_or("a secret");
            (variable["name"].as_str().expect("a name").to_owned(), value.to_owned())
        })
        .collect();
    serves(&environment).await;
    let value_of = |name| environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    assert!(value_of("HEADCOUNT_DRAIN_DELAY").is_some_and(|delay| seconds(delay) < SHUTDOWN_TIMEOUT));
    assert!(pod["terminationGracePeriodSeconds"].as_u64().is_some_and(|grace| grace > SHUTDOWN_TIMEOUT));

    let admin = value_of("HEADCOUNT_ADMIN_LISTEN").and_then(|address| address.parse::<SocketAddr>().ok());
    let ports = container["ports"].as_array().expect("ports");
    let port =
        |name: &str| ports.iter().find(|port| port["name"] == name).map(|port| port["containerPort"].clone());
    assert_eq!(port("admin"), admin.map(|address| address.port().into()));
    let monitor = yaml("deploy/podmonitor.yaml");
    assert_eq!(&monitor["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(monitor["spec"]["podMetricsEndpoints"], serde_json::json!([{"port": "admin"}]));
    // The alerts match such jobs. Without the label, the job would begin with the namespace.
    let job = monitor["spec"]["jobLabel"].as_str().and_then(|label| labels[label].as_str());
    assert!(job.is_some_and(|job| job.starts_with("headcount")), "{monitor}");
    let version = format!(":{}", env!("CARGO_PKG_VERSION"));
    assert!(container["image"].as_str().is_some_and(|image| image.ends_with(&version)), "{container}");
    for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
        assert_eq!(container[probe]["httpGet"], serde_json::json!({"path": path, "port": "admin"}));
    }
}

#[test]
fn hadolint_accepts_the_dockerfile() {
    succeeds(python_tool("hadolint").current_dir(in_repository("")).arg("Dockerfile"));
}

/// nginx with docker/nginx.conf. The test replaces the instances' names by addresses, because Debian's nginx does not look
/// names up again.
fn load_balancer(instances: &[SocketAddr]) -> Nginx {
    Nginx::start_with(|dir, address| {
        let text = text_of("docker/nginx.conf");
        let server = text.lines().find(|line| line.contains("headcount:8080 resolve")).expect("instances");
        let servers = instances.iter().map(|to| server.replace("headcount:8080 resolve", &to.to_string()));
        let text = replaced(&text, server, &servers.collect::<Vec<_>>().join("\n"));
        let text = replaced(&text, "listen 8080 ", &format!("listen {address} "));
        let text = replaced(&text, "/tmp/", &format!("{}/", dir.display()));
        replaced(&text, "error_log stderr", &format!("error_log {}/errors", dir.display()))
    })
}

/// The load balancer's disk for bodies is tiny, and an instance is down. Clients get the service's answers, and no id gets
/// into a log.
#[tokio::test(flavor = "multi_thread")]
async fn requests_over_the_limits_of_the_load_balancer_are_refused_as_by_the_service() {
    let mut server = Server::start(&["--window", "24h"]).await;
    let nginx = load_balancer(&[server.address]);
    let disk = SmallDisk::mount(&nginx.dir().join("body"));
    let large = lines(10_u64.pow(17)..10_u64.pow(17) + 100_000);
    let refused = async |body: &str| {
        let mut connection = Connection::open(nginx.address).await.unwrap();
        let answer = connection.post("text/plain", body.as_bytes()).await.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (503, "failed"));
        assert_eq!(answer.header("failure-reason"), Some("overloaded"));
        assert_eq!(answer.header("retry-after"), Some("1"));
    };
    for _ in 0..3 {
        refused(&large).await;
    }
    let mut connection = Connection::open(nginx.address).await.unwrap();
    let answer = connection.post("text/plain", b"1\n2\n").await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "ok"), "what is small needs no disk");
    // The load balancer passes the instance's own answers unchanged.
    let answer = connection.post("text/plain", b"x").await.unwrap();
    assert_eq!((answer.status, answer.header("failure-reason")), (400, Some("invalid_id")));
    assert_eq!(server.stop().await.code(), Some(0));
    refused("100000000000000007\n").await;
    let mut connection = Connection::open(nginx.address).await.unwrap();
    let answer = connection.get("/api/verve/accept?id=100000000000000007").await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (503, "failed"));
    let logged = std::fs::read_to_string(nginx.dir().join("errors")).unwrap_or_default() + &nginx.errors();
    assert!(!logged.contains("10000000000000"), "{logged}");
    drop(disk);
}

/// More bodies of 8 MB at once than fit into the 256 MB of docker-compose.yml. Each client gets `ok` or the service's
/// refusal, and every id with `ok` is counted.
#[tokio::test(flavor = "multi_thread")]
async fn many_large_bodies_at_once_are_taken_or_refused_as_by_the_service() {
    const LIMIT: usize = 8_388_608;
    const CLIENTS: usize = 60;
    let server = Server::start(&["--window", "24h"]).await;
    let nginx = load_balancer(&[server.address]);
    let disk = SmallDisk::mount_of("256m", &nginx.dir().join("body"));
    let ids: Arc<str> = lines(10_u64.pow(17)..10_u64.pow(17) + LIMIT as u64 / 19).into();
    let (mut clients, all_wait) = (tokio::task::JoinSet::new(), Arc::new(Barrier::new(CLIENTS)));
    for _ in 0..CLIENTS {
        let (address, ids, all_wait) = (nginx.address, Arc::clone(&ids), Arc::clone(&all_wait));
        clients.spawn(async move {
            let mut connection = Connection::open(address).await.unwrap();
            let (most, last) = ids.as_bytes().split_at(ids.len() - 1);
            let head = "POST /api/verve/accept HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\n";
            let head = format!("{head}content-length: {}\r\n\r\n", ids.len());
            // No body is whole before the others are there. Sending fails if the answer comes first.
            let sent = connection.send(&[head.as_bytes(), most].concat()).await;
            all_wait.wait().await;
            if sent.is_ok() {
                let _ = connection.send(last).await;
            }
            connection.answer(false).await.unwrap()
        });
    }
    let (mut taken, mut refused) = (0, 0);
    for answer in clients.join_all().await {
        if answer.status == 200 {
            taken += 1;
            continue;
        }
        refused += 1;
        assert_eq!((answer.status, answer.body.as_str()), (503, "failed"));
        assert_eq!(answer.header("failure-reason"), Some("overloaded"));
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    println!("{taken} taken, {refused} refused");
    assert!(refused > 0, "{taken} taken");
    let mut connection = Connection::open(nginx.address).await.unwrap();
    assert_eq!(
        connection.post("text/plain", ids.as_bytes()).await.unwrap().body,
        "ok",
        "there is room again"
    );
    taken += 1;
    let accepted = server.metric("headcount_accepted_ids_total").await as usize;
    // Whole bodies. nginx may have given up on a slow answer to one that was taken.
    assert_eq!(accepted % (LIMIT / 19), 0);
    assert!((taken..=CLIENTS + 1).contains(&(accepted / (LIMIT / 19))), "{taken} taken, {accepted} ids");
    let logged = std::fs::read_to_string(nginx.dir().join("errors")).unwrap_or_default() + &nginx.errors();
    assert!(!logged.contains("10000000000000"), "{logged}");
    drop(disk);
}

/// Two instances that count together, behind a load balancer.
async fn two_instances(redis: &Redis) -> (Fleet, Nginx) {
    let fleet =
        Fleet::start_with(2, &["--window", "24h", "--mode", "exact", "--redis-url", &redis.url()]).await;
    let nginx = load_balancer(&fleet.addresses());
    (fleet, nginx)
}

/// The running window's count, through the load balancer.
async fn unique(nginx: &Nginx) -> Value {
    let answer = Connection::open(nginx.address).await.unwrap().get("/api/verve/unique").await.unwrap();
    answer.json()["current"]["unique_request_count"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_load_balancer_needs_few_connections() {
    const CLIENTS: u64 = 8;
    let redis = Redis::start();
    let (fleet, nginx) = two_instances(&redis).await;
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let address = nginx.address;
        clients.spawn(async move {
            let mut connection = Connection::open(address).await.unwrap();
            for id in client * 1_000..client * 1_000 + 250 {
                let answer = connection.get(&format!("/api/verve/accept?id={id}")).await.unwrap();
                assert_eq!(answer.body, "ok");
            }
        });
    }
    clients.join_all().await;

    assert_eq!(unique(&nginx).await, CLIENTS * 250);
    for server in &fleet.servers {
        let text = server.get("/metrics").await.body;
        let accepted = value_of(&text, "headcount_accepted_ids_total").unwrap();
        // This request has its own connection. The others were kept, and no unneeded one was opened.
        let connections = value_of(&text, "headcount_connections").unwrap() - 1.0;
        println!("{accepted} ids over {connections} connections");
        assert!(accepted > 500.0, "{accepted}");
        assert!((1.0..=CLIENTS as f64).contains(&connections), "{connections}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_bodies_pass_the_load_balancer_up_to_the_limit() {
    const LIMIT: usize = 8_388_608;
    let server = Server::start(&["--window", "24h"]).await;
    let nginx = load_balancer(&[server.address]);
    // Each id has 18 digits.
    let ids = lines(10_u64.pow(17)..10_u64.pow(17) + LIMIT as u64 / 19);
    assert!((LIMIT - 18..=LIMIT).contains(&ids.len()));
    let mut connection = Connection::open(nginx.address).await.unwrap();
    let answer = connection.post("text/plain", ids.as_bytes()).await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));
    assert_eq!(server.metric("headcount_accepted_ids_total").await, (LIMIT / 19) as f64);

    // An instance refuses a body that is slightly too large. The load balancer refuses a much larger one.
    for (times, reason) in [(1, Some("body_too_large")), (2, None)] {
        let larger = format!("{}{}", ids.repeat(times), &ids[..38]);
        let mut connection = Connection::open(nginx.address).await.unwrap();
        let answer = connection.post("text/plain", larger.as_bytes()).await.unwrap();
        assert_eq!((answer.status, answer.header("failure-reason")), (413, reason));
    }
}

/// Waits until an instance has accepted this many more ids.
async fn wait_for_more(server: &Server, ids: f64) {
    let accepted = async || server.metric("headcount_accepted_ids_total").await;
    let before = accepted().await;
    wait_until("an instance to get ids", async || accepted().await >= before + ids).await;
}

/// One instance is stopped and comes back, then the other is killed, while clients send single ids and bulk bodies.
#[tokio::test(flavor = "multi_thread")]
async fn clients_of_the_load_balancer_notice_no_stopping_instance() {
    const BULK: u64 = 100;
    let redis = Redis::start();
    let (mut fleet, nginx) = two_instances(&redis).await;
    let load = Load::start(nginx.address, 16, 0);
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let address = nginx.address;
    let bulk = tokio::spawn(async move {
        let mut connection = Connection::open(address).await.unwrap();
        let mut sent = 0;
        while stopped.try_recv().is_err() {
            let first = (1 << 40) + sent;
            let answer = connection.post("text/plain", lines(first..first + BULK).as_bytes()).await.unwrap();
            assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));
            sent += BULK;
        }
        sent
    });

    wait_for_more(&fleet.servers[0], 500.0).await;
    assert_eq!(fleet.servers[0].stop().await.code(), Some(0));
    wait_for_more(&fleet.servers[1], 2_000.0).await;
    let first = fleet.servers[0].address;
    let back = fleet.add_on(first).await;
    wait_for_more(back, 2_000.0).await;
    fleet.servers[1].process.signal("KILL");
    wait_for_more(&fleet.servers[2], 2_000.0).await;

    let _ = stop.send(());
    let bulk = bulk.await.unwrap();
    let outcome = load.stop().await;
    assert!(outcome.broken.is_empty(), "{:?}", outcome.broken.first());
    assert_eq!(outcome.unanswered, 0);
    println!("{} ids singly, {bulk} in bodies, all ok", outcome.ok.len());
    assert_eq!(unique(&nginx).await, outcome.ok.len() as u64 + bulk);
}

/// A container. Dropping it removes it.
struct Container(String);

impl Drop for Container {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rm", "--force", &self.0]).stdout(Stdio::null()).status();
    }
}

#[test]
fn the_image_becomes_healthy() {
    let docker = |args: &[&str]| {
        let output = Command::new("docker").args(args).current_dir(in_repository("")).output();
        output
            .ok()
            .filter(|output| output.status.success())
            .map(|output| String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned())
    };
    if docker(&["info"]).is_none() {
        // Not println: the test runner hides it when a test passes.
        let _ = writeln!(std::io::stderr(), "skipped: the image, because there is no Docker engine");
        return;
    }
    let image = docker(&["build", "--quiet", "."]).expect("the image can be built");
    let container = Container(docker(&["run", "--detach", "--read-only", &image]).expect("it starts"));
    wait_blocking("the container to be healthy", || {
        docker(&["inspect", "--format", "{{.State.Health.Status}}", &container.0]).as_deref()
            == Some("healthy")
    });
}
