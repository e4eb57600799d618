# Sourced by scripts/image-test: builds the image and checks what it promises by itself.

mib() { awk -v bytes="$1" 'BEGIN { printf "%.1f", bytes / 1048576 }'; }

# The context of the build, as .dockerignore leaves it.
make_context() {
  rm -rf "$work/context"
  mkdir "$work/context"
  cp -r Dockerfile .dockerignore Cargo.toml Cargo.lock src "$work/context/"
}

# build TAG LOG: prints how many seconds it took. Compose builds, as for the stack: to the classic builder, the same file is another one
# if another client sends it, and then the stack would compile all dependencies again.
build() {
  local started=$SECONDS
  cat >"$work/build.yml" <<END
services:
  image:
    build: { context: $work/context, args: { REVISION: $(git rev-parse HEAD) } }
    image: $1
END
  # Without the colours of what a step writes to standard error.
  compose --file "$work/build.yml" build 2>&1 9>&- | sed 's/\x1b\[[0-9;]*m//g' >"$2" ||
    { tail -n 20 "$2" >&2; fail "the image cannot be built"; }
  echo $((SECONDS - started))
}

it_is_built() {
  make_context
  # With a built program the first stage only has that.
  [ -z "$binary" ] || use_binary
  local seconds
  seconds=$(build "$image" "$state/build.log")
  note "$seconds s, of which layers that were there cost nothing"
}

use_binary() {
  strip --strip-debug -o "$work/context/headcount" "$binary"
  echo '!headcount' >>"$work/context/.dockerignore"
  { printf 'FROM stand-in-base AS build\nCOPY headcount /src/target/dist/headcount\n'; sed -n '/^FROM debian/,$p' Dockerfile; } \
    >"$work/context/Dockerfile"
}

# The second build has a source that no build had before. It must compile nothing but headcount.
a_change_of_a_source_compiles_no_dependency() {
  local seconds compiled
  echo "// Changed at $(date +%s.%N)." >>"$work/context/src/main.rs"
  seconds=$(build "$image-changed" "$state/rebuild.log")
  compiled=$(grep '^ *Compiling' "$state/rebuild.log") || true
  [ "$(awk '{ print $2 }' <<<"$compiled")" = headcount ] || fail "the build after a change of a source compiled: $compiled"
  note "$seconds s"
  docker rmi "$image-changed" >/dev/null
  keep_only_layers_of "$state/build.log"
}

# Each change of a source leaves a first stage, which has no name. Those of other builds than this are removed.
keep_only_layers_of() { # LOG
  docker images --quiet --filter dangling=true | sort -u | grep -vxFf <(awk '$1 == "--->" { print $2 }' "$1") |
    xargs --no-run-if-empty /usr/bin/docker rmi >/dev/null || true
}

it_is_small() {
  local base size
  base=$(docker image inspect --format '{{.Size}}' "$(from 2)")
  size=$(docker image inspect --format '{{.Size}}' "$image")
  [ $((size - base)) -lt 25000000 ] || fail "the image is $((size - base)) bytes larger than its base"
  note "$(mib $((size - base))) MiB over its base of $(mib "$base") MiB"
}

it_says_what_it_is() {
  local labels version
  labels=$(docker image inspect --format '{{json .Config.Labels}}' "$image")
  version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
  grep -q "\"org.opencontainers.image.version\":\"$version\"" <<<"$labels" || fail "its label has not version $version: $labels"
  grep -q "\"org.opencontainers.image.revision\":\"$(git rev-parse HEAD)\"" <<<"$labels" || fail "its label has not the revision: $labels"
  [ "$(docker run --rm "$image" --version)" = "headcount $version" ] || fail "it is another version than its label says"
  note "$version"
}

# start FLAG-OF-DOCKER... IMAGE FLAG...: a container named it, on port 8080 unless told otherwise.
start() { docker run --detach --name it --health-interval 1s "$@" >/dev/null; }
remove() { docker rm --force --volumes it >/dev/null; }
health_is() { [ "$(docker inspect --format '{{.State.Health.Status}}' it)" = "$1" ]; }
address() { docker inspect --format '{{.NetworkSettings.IPAddress}}' it; }
pid_of() { docker inspect --format '{{.State.Pid}}' "$1"; }
get() { inside curl --silent --max-time 10 "http://$1"; }
# The most memory that the container's cgroup had, in bytes: cgroup v2 or v1.
peak() { docker exec it sh -c 'cat /sys/fs/cgroup/memory.peak 2>/dev/null || cat /sys/fs/cgroup/memory/memory.max_usage_in_bytes'; }
was_not_killed_for_memory() { [ "$(docker inspect --format '{{.State.OOMKilled}} {{.State.Running}}' it)" = "false true" ]; }

hardened=(--read-only --cap-drop ALL --security-opt no-new-privileges)

it_runs_without_rights_in_64_megabytes() {
  local status used answers
  start "${hardened[@]}" --memory 64m --memory-swap 64m "$image" --max-counters 0 --body-limit 65536 --window 1h
  eventually 30 "the container to be healthy" health_is healthy
  status=$(cat "/proc/$(pid_of it)/status")
  grep -q '^Uid:[[:space:]]*10001[[:space:]]*10001' <<<"$status" || fail "it does not run as user 10001"
  grep -q '^CapBnd:[[:space:]]*0*$' <<<"$status" || fail "it could get capabilities"
  grep -q '^NoNewPrivs:[[:space:]]*1$' <<<"$status" || fail "it could get privileges"
  ! docker exec it sh -c 'echo x >/tmp/x' 2>/dev/null || fail "its file system can be written"
  # Single ids over 200 connections, then the largest bodies over 64.
  inside wrk --threads 2 --connections 200 --duration 5s "http://$(address):8080/api/verve/accept?id=42" >"$work/wrk.log"
  ! grep -q 'Non-2xx' "$work/wrk.log" || fail "$(grep 'Non-2xx' "$work/wrk.log")"
  inside wrk --threads 2 --connections 64 --duration 5s --script tests/image/bodies.lua \
    "http://$(address):8080/api/verve/accept" >"$work/bodies.log"
  grep -q 'requests in' "$work/bodies.log" || fail "the load of bodies did not run"
  was_not_killed_for_memory || fail "64 MB are not enough"
  used=$(peak)
  [ "$(get "$(address):8080/api/verve/accept?id=1")" = ok ] || fail "it does not count after the load"
  answers=$(awk '/requests in/ { total += $1 } END { print total }' "$work/wrk.log" "$work/bodies.log")
  note "peak $(mib "$used") MiB with $answers requests"
  remove
}

# headcount is process 1, which has no default for signals.
it_stops_in_order_as_process_1() {
  local id code log
  start "${hardened[@]}" "$image" --window 24h
  eventually 30 "the container to be healthy" health_is healthy
  [ "$(tr '\0' ' ' <"/proc/$(pid_of it)/cmdline")" = "headcount --window 24h " ] || fail "process 1 is another"
  for id in 1 2 3 3; do
    [ "$(get "$(address):8080/api/verve/accept?id=$id")" = ok ] || fail "it does not count"
  done
  docker stop --time 30 it >/dev/null
  code=$(docker inspect --format '{{.State.ExitCode}}' it)
  [ "$code" = 0 ] || fail "SIGTERM ends it with $code"
  # Not in a pipe: grep ends at the first match, and who writes into the pipe then fails.
  log=$(docker logs it 2>&1)
  grep -q 'unique_request_count[^0-9]*3[^0-9]' <<<"$log" || fail "the running window is not in the log: $log"
  note "exit code 0, the window has 3 ids"
  remove
}

workers() { docker exec it sh -c 'cat /proc/1/task/*/comm' | grep -c '^worker-'; }

its_threads_follow_the_quota() {
  local cores of_one of_all
  cores=$(nproc)
  start --cpus 1 "$image"
  eventually 30 "the container to be healthy" health_is healthy
  of_one=$(workers)
  remove
  start "$image"
  eventually 30 "the container to be healthy" health_is healthy
  of_all=$(workers)
  remove
  [ "$of_one" = 1 ] || fail "with --cpus 1 it has $of_one workers"
  [ "$of_all" = "$cores" ] || fail "on $cores cores it has $of_all workers"
  note "1 worker with --cpus 1, $of_all on $cores cores"
}

its_health_check_finds_it() {
  start "$image" --listen 0.0.0.0:9000
  eventually 30 "a container with --listen 0.0.0.0:9000 to be healthy" health_is healthy
  remove
  start --init "$image" serve --admin-listen 127.0.0.1:9001
  eventually 30 "a container with --init and --admin-listen to be healthy" health_is healthy
  # SIGSTOP stands for a process that hangs.
  kill -STOP "$(pgrep --parent "$(pid_of it)" --exact headcount)"
  eventually 60 "a container that hangs to be unhealthy" health_is unhealthy
  remove
  start --env HEADCOUNT_LISTEN=0.0.0.0:9002 "$image"
  eventually 30 "a container with HEADCOUNT_LISTEN to be healthy" health_is healthy
  remove
}

# The limit of docker-compose.yml, and what it is worked out from: all that has a limit, full at once.
its_limit_is_enough_for_everything_at_once() {
  local limit filled used
  limit=$(compose_limit)
  start "${hardened[@]}" --memory "$limit" --memory-swap "$limit" "$image" --window 24h --max-counters 10000000 \
    --max-connections-per-address 10000 --idle-timeout 10m --body-read-timeout 10m
  eventually 30 "the container to be healthy" health_is healthy
  filled=$(inside python3 tests/image/fill.py "$(address)" 8080 10000 8388608 64) || { docker logs it 2>&1 | tail -n 5 >&2; fail "could not fill it"; }
  was_not_killed_for_memory || fail "$limit are not enough for $filled"
  used=$(peak)
  python3 - "$filled" <<'PYTHON' || fail "the load did not fill everything: $filled"
import json, sys
filled = json.loads(sys.argv[1])
sys.exit(not (filled["counter_bytes"] > 250e6 and filled["connections"] >= 9_900 and filled["bodies"] >= 32))
PYTHON
  note "peak $(mib "$used") MiB of $limit: $filled"
  remove
}

compose_limit() { awk '/^  headcount:/ { on = 1 } on && /limits:/ { sub(/.*memory: /, ""); sub(/[,}].*/, ""); print; exit }' docker-compose.yml; }

check_image() {
  local checks=(it_is_built it_is_small it_says_what_it_is it_runs_without_rights_in_64_megabytes
    it_stops_in_order_as_process_1 its_threads_follow_the_quota its_health_check_finds_it
    its_limit_is_enough_for_everything_at_once)
  [ -n "$binary" ] || checks+=(a_change_of_a_source_compiles_no_dependency)
  run_checks "${checks[@]}"
}
