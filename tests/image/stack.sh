# Sourced by scripts/image-test: brings docker-compose.yml up and checks what the docs promise of the stack.

export COMPOSE_PROJECT_NAME=image-test COMPOSE_FILE=docker-compose.yml:tests/image/compose.override.yml
# All but Grafana, which is no Debian package.
services=(redis kafka headcount nginx prometheus)
balancer=127.0.0.1:8080

up() { compose up --detach --wait --wait-timeout 300 "$@" >"$work/up.log" 2>&1 || { tail -n 20 "$work/up.log" >&2; fail "docker compose up failed"; }; }
instances() { compose ps --quiet headcount; }
ip_of() { docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$1"; }
say_more() { [ -z "$engine" ] || timeout 60 /usr/bin/docker ps --all --format '{{.Names}}: {{.Status}}' >&2 || true; }

# A load in the background. stop_load prints what it got: {"ok": 500}.
load='' next_id=1
start_load() { # RATE
  # Not by `inside`: the signal to stop is for this process.
  nsenter --net="/run/netns/$netns" python3 tests/image/load.py "http://$balancer" $((next_id += 1000000)) "$1" >"$work/load.json" 2>"$work/load.err" 9>&- &
  load=$!
}
stop_load() {
  kill -TERM "$load"
  wait "$load" || { cat "$work/load.err" >&2; fail "the load failed"; }
  load=''
  all_ids=$((all_ids + $(ok_of)))
}
ok_of() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1])).get("ok", 0))' "$work/load.json"; }
only_ok() {
  python3 -c 'import json, sys; sys.exit(set(json.load(open(sys.argv[1]))) != {"ok"})' "$work/load.json" ||
    fail "while $1, clients got $(cat "$work/load.json")"
}
# How many ids got ok, and how many of these may be in two windows: those that an instance had in hand when it was killed. Each of
# the load's eight connections has at most one.
all_ids=0 twice=0
kill_instance() {
  kill -KILL "$(pid_of "$1")"
  twice=$((twice + 8))
}

# The records of the windows in Kafka, a line each. kcat reads in a moment what takes Kafka's tool seconds. Only the
# containers know the name that Kafka advertises.
records() {
  echo "$(ip_of image-test-kafka-1) kafka" >"$work/hosts"
  inside unshare --mount sh -c 'mount --bind "$0" /etc/hosts && exec timeout 60 kcat -b kafka:9092 -t headcount.unique-counts -C -e -q \
    -X isolation.level=read_committed' "$work/hosts"
}
published() { records | python3 -c 'import json, sys; print(sum(json.loads(line)["unique_request_count"] for line in sys.stdin))'; }
all_are_published() {
  local count
  count=$(published)
  [ "$count" -ge "$all_ids" ] && [ "$count" -le $((all_ids + twice)) ]
}

it_comes_up() {
  up "${services[@]}"
  local unhealthy
  unhealthy=$(docker ps --all --filter name=image-test- --format '{{.Names}} {{.Status}}' | grep -v '(healthy)') || true
  [ -z "$unhealthy" ] || fail "not healthy: $unhealthy"
  [ "$(get "$balancer/api/verve/accept?id=42")" = ok ] || fail "the load balancer does not answer ok"
  all_ids=1
  note "$(docker ps --quiet --filter name=image-test- | wc -l) containers are healthy"
}

it_is_limited() {
  local container
  for container in $(docker ps --quiet --filter name=image-test-); do
    [ "$(docker inspect --format '{{.HostConfig.LogConfig.Config}}' "$container")" = "map[max-file:3 max-size:10m]" ] ||
      fail "$(docker inspect --format '{{.Name}}' "$container") has a log without bounds"
    [ "$(docker inspect --format '{{.HostConfig.PidsLimit}}' "$container")" = 512 ] || fail "no limit of threads"
  done
  note "threads: $(docker stats --no-stream --format '{{.Name}} {{.PIDs}}' | sed 's/image-test-//; s/-1 / /' | paste -sd ,)"
}

kafka_is_healthy_by_an_answer() {
  local kafka=image-test-kafka-1
  # A broker that hangs accepts connections, and answers none.
  kill -STOP "$(pid_of $kafka)"
  # Five tries, every five seconds, of three seconds each.
  eventually 90 "a Kafka that hangs to be unhealthy" is_health $kafka unhealthy
  kill -CONT "$(pid_of $kafka)"
  eventually 180 "Kafka to be healthy again" is_health $kafka healthy
}
is_health() { [ "$(docker inspect --format '{{.State.Health.Status}}' "$1")" = "$2" ]; }

three_instances_publish_one_number() {
  up --no-recreate --scale headcount=3 "${services[@]}"
  [ "$(instances | wc -l)" = 3 ] || fail "there are $(instances | wc -l) instances"
  eventually 30 "the load balancer to know all instances" knows_all
  start_load 100
  eventually 40 "each instance to have ids" each_has_ids
  stop_load
  only_ok "three instances count"
  eventually 180 "the ids of three instances to be in Kafka" all_are_published
  note "$all_ids ids sent, as many in Kafka"
}
each_has_ids() {
  local container
  for container in $(instances); do
    metric "$container" headcount_accepted_ids_total | awk '{ exit !($1 > 50) }' || return 1
  done
}
metric() { get "$(ip_of "$1"):8080/metrics" | awk -v name="$2" '$1 == name { print $2 }'; }
knows_all() {
  local container known
  known=$(for _ in $(seq 12); do get "$balancer/status" | grep -o '"instance":"[^/]*'; done)
  for container in $(instances); do grep -q "\"${container:0:12}" <<<"$known" || return 1; done
}

leader() {
  local container
  for container in $(instances); do
    [ "$(metric "$container" headcount_leader)" != 1 ] || echo "$container"
  done
}
there_is_a_leader() { [ "$(leader | wc -l)" = 1 ]; }

# Its process is killed, as by the kernel. The engine starts it again.
a_killed_leader_costs_no_window() {
  local first
  eventually 30 "a leader" there_is_a_leader
  first=$(leader)
  start_load 100
  eventually 20 "ids to arrive" ids_arrive "$first"
  kill_instance "$first"
  eventually 60 "another leader" there_is_a_leader
  eventually 60 "the killed instance to be healthy again" is_health "$first" healthy
  stop_load
  only_ok "the leader was killed"
  eventually 180 "all ids to be in Kafka" all_are_published
  each_window_is_there_once
}
ids_arrive() { metric "$1" headcount_accepted_ids_total | awk '{ exit !($1 > 200) }'; }

each_window_is_there_once() {
  local said
  records >"$work/records"
  said=$(python3 tests/image/windows.py 10 <"$work/records") || fail "windows are missing or there twice"
  note "$said"
}

redis_and_kafka_may_restart() {
  start_load 50
  compose restart redis kafka >/dev/null 2>&1
  eventually 180 "Redis to be healthy" is_health image-test-redis-1 healthy
  # On a busy machine Kafka needs more than 90 s to start.
  eventually 180 "Kafka to be healthy" is_health image-test-kafka-1 healthy
  stop_load
  only_ok "Redis and Kafka restarted"
  eventually 180 "all ids to be in Kafka" all_are_published
  each_window_is_there_once
}

# As the docs say, but for one record.
docs_show_the_counts() {
  local record
  record=$(compose exec -T kafka /opt/kafka/bin/kafka-console-consumer.sh --bootstrap-server kafka:9092 \
    --topic headcount.unique-counts --from-beginning --isolation-level read_committed --max-messages 1 --timeout-ms 60000 2>/dev/null)
  grep -q '"unique_request_count":' <<<"$record" || fail "the command of the docs shows no record: $record"
}

check_and_verify_find_nothing() {
  compose exec -T headcount headcount check >"$work/check.txt" || { cat "$work/check.txt" >&2; fail "check finds something"; }
  compose exec -T headcount headcount verify >"$work/verify.txt" || { cat "$work/verify.txt" >&2; fail "verify finds something"; }
  note "$(tail -n 1 "$work/verify.txt")"
}

prometheus_sees_each_instance() {
  eventually 60 "Prometheus to scrape each instance" targets_are_up "$(instances | wc -l)"
  [ "$(get '127.0.0.1:9090/api/v1/rules' | grep -o '"health":"[a-z]*"' | sort -u | paste -sd ,)" = '"health":"ok"' ] || fail "a rule of Prometheus fails"
  note "$(instances | wc -l) targets are up"
}
targets_are_up() {
  get '127.0.0.1:9090/api/v1/targets?state=active' | python3 -c '
import json, sys
targets = [t for t in json.load(sys.stdin)["data"]["activeTargets"] if t["labels"]["job"].startswith("headcount")]
sys.exit(not (len(targets) == int(sys.argv[1]) and all(t["health"] == "up" for t in targets)))' "$1"
}

a_roll_fails_no_request() {
  local before number
  before=$(instances)
  number=$(wc -l <<<"$before")
  start_load 100
  inside env PATH="$work/bin:$PATH" docker/roll >"$work/roll.log" 2>&1 || { tail -n 20 "$work/roll.log" >&2; fail "docker/roll failed"; }
  stop_load
  only_ok "docker/roll ran"
  [ "$(instances | wc -l)" = "$number" ] || fail "after docker/roll there are $(instances | wc -l) instances, not $number"
  ! grep -qxFf <(echo "$before") <<<"$(instances)" || fail "docker/roll left an old instance"
  note "$number instances replaced, $(cat "$work/load.json")"
}

# Each time an instance is killed or is one too many, and comes back.
kills_and_scaling_fail_no_request() {
  local turn victim number
  number=$(instances | wc -l)
  eventually 30 "the load balancer to know all instances" knows_all
  start_load 200
  for turn in 1 2 3 4 5 6; do
    victim=$(instances | sed -n "$((turn % number + 1))p")
    kill_instance "$victim"
    eventually 60 "the killed instance to be healthy again" is_health "$victim" healthy
    eventually 30 "the load balancer to know all instances" knows_all
    up --no-recreate --no-deps --scale headcount=$((number - 1)) headcount
    up --no-recreate --no-deps --scale headcount="$number" headcount
    eventually 30 "the load balancer to know all instances" knows_all
  done
  stop_load
  only_ok "instances were killed and scaled"
  note "12 times, $(cat "$work/load.json")"
}

down_and_up_keep_all() {
  compose down >/dev/null 2>&1
  [ -z "$(docker ps --all --quiet)" ] || fail "docker compose down leaves containers"
  up "${services[@]}"
  [ "$(get "$balancer/api/verve/accept?id=43")" = ok ] || fail "the load balancer does not answer ok after down and up"
  all_ids=$((all_ids + 1))
  eventually 180 "all ids to be in Kafka" all_are_published
  each_window_is_there_once
}

check_stack() {
  # For docker/roll, which calls docker.
  mkdir -p "$work/bin"
  ln -sf /usr/bin/docker "$work/bin/docker"
  if [ -n "$binary" ]; then
    # Compose builds at each `up`. So it must build the same.
    printf 'services: {headcount: {build: "%s"}}\n' "$work/context" >"$work/binary.yml"
    COMPOSE_FILE+=:$work/binary.yml
  fi
  run_checks it_comes_up it_is_limited prometheus_sees_each_instance kafka_is_healthy_by_an_answer three_instances_publish_one_number \
    a_killed_leader_costs_no_window redis_and_kafka_may_restart a_roll_fails_no_request kills_and_scaling_fail_no_request \
    docs_show_the_counts check_and_verify_find_nothing down_and_up_keep_all
}
