//! The deployment files, as far as tests without Docker can: docker-compose.yml, the Dockerfile, and the example for Kubernetes.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::process::{headcount, output_of, run};
use crate::support::redis::Redis;
use crate::support::server::Server;
use crate::support::tools::{in_repository, python_tool, succeeds, yaml, yaml_documents};
use crate::support::{free_port, wait_blocking};

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
            assert!(dockerfile.contains(&format!(r#"image.version="{tag}""#)));
            assert!(dockerfile.contains(r#"HEALTHCHECK --interval=10s --timeout=4s --start-period=5s CMD ["headcount", "healthcheck"]"#));
            assert!(service.get("healthcheck").is_none(), "that of the Dockerfile counts");
        } else {
            assert!(strings(&service["healthcheck"]["test"]).len() > 1, "{name}");
        }
        let limits = &service["deploy"]["resources"]["limits"];
        assert!(limits["memory"].as_str().is_some_and(|bytes| bytes.parse::<u64>().is_ok()), "{name}");
        assert!(limits["cpus"].as_f64().is_some_and(|cpus| cpus > 0.0), "{name}: {limits}");
        assert!(limits["pids"].as_u64().is_some_and(|pids| pids > 0), "{name}: {limits}");
        assert!(service["logging"]["options"]["max-size"].is_string(), "{name} has a log without bounds");
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
