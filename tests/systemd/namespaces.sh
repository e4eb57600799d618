# Sourced by scripts/unit-test and scripts/package-test: a real systemd in namespaces of its own.
#
# The script calls `under_systemd`. That starts the script again with --boot, as process 1 of new namespaces. There it changes
# files where nobody else sees it, and calls `become_systemd`. systemd runs beside the script's third start, with --check, which
# calls `run_checks`.

work='' group=''
clean_up() {
  [ -z "$work" ] || rm -rf "$work"
  [ -z "$group" ] || find "$group" -depth -type d -exec rmdir {} +
}

# begin: makes $work, which the namespaces have too. What the machine's /tmp has must be copied there.
begin() {
  work=$(mktemp -d)
  trap clean_up EXIT
  cp "scripts/${0##*/}" "$work/script"
  cp tests/systemd/namespaces.sh "$work/"
}

# under_systemd SECONDS LOG...: prints what the checks say. If one fails, it also prints the ends of these logs in $work.
under_systemd() {
  local seconds=$1 cgroup log
  shift
  # A machine may have none.
  cgroup=$(findmnt --noheadings --output TARGET --types cgroup2 | head -n 1) || true
  if [ -n "$cgroup" ]; then
    group=$cgroup/headcount-test.$$
    mkdir "$group"
  fi
  (
    [ -z "$group" ] || echo "$BASHPID" >"$group/cgroup.procs"
    exec timeout --kill-after 5 "$seconds" unshare --fork --pid --mount --mount-proc --cgroup --uts --ipc --net --kill-child \
      bash "$work/script" --boot "$work" >"$work/systemd.log" 2>&1
  ) || true
  cat "$work/checks" 2>/dev/null || true
  if [ "$(tail -n 1 "$work/checks" 2>/dev/null)" != "all checks passed" ]; then
    for log in systemd.log "$@"; do
      echo "== $log" >&2
      tail -n 40 "$work/$log" >&2 || true
    done
    fail "failed"
  fi
}

# change_unseen WORK DIRECTORY...: only these namespaces see changes of the directories. WORK is /run/test there.
change_unseen() {
  local work=$1 dir
  shift
  mount --make-rprivate /
  # systemd would change settings of the kernel.
  mount --bind /proc/sys /proc/sys
  mount -o remount,bind,ro /proc/sys
  mount -t tmpfs tmpfs /run
  mkdir -p /run/test /run/lock /run/systemd/system
  mount --bind "$work" /run/test
  for dir in "$@"; do
    mkdir -p "/run/changes$dir/new" "/run/changes$dir/work"
    mount -t overlay overlay -o "lowerdir=$dir,upperdir=/run/changes$dir/new,workdir=/run/changes$dir/work" "$dir"
  done
  mount -t tmpfs tmpfs /tmp
  mkdir -p /var/log/private
  chmod 700 /var/log/private
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
  # systemd mounts credentials in a namespace of its own, from which they must come here.
  mount --make-rshared /
  ip link set lo up
}

become_systemd() {
  printf '[Unit]\nDefaultDependencies=no\n' >/etc/systemd/system/test.target
  bash /run/test/script --check >/run/test/checks 2>&1 &
  export container=other
  exec /lib/systemd/systemd --system --unit=test.target --log-target=console --show-status=false
}

# run_checks NAME...: each is a function that fails the script. systemd ends with it.
run_checks() {
  local name
  trap 'systemctl exit' EXIT
  eventually "systemd" systemctl is-active --quiet test.target
  for name in "$@"; do
    "$name"
    echo "ok: ${name//_/ }"
  done
  echo "all checks passed"
}

# Waits up to 20 seconds for a command to succeed.
eventually() {
  local what=$1 until=$((SECONDS + 20))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$until" ] || fail "waited 20 s for $what"
    sleep 0.05
  done
}

property() { systemctl show --property "$1" --value headcount; }

# get TARGET [PORT]: the body of the answer.
get() {
  exec 3<>"/dev/tcp/127.0.0.1/${2:-8080}" || return 1
  printf 'GET %s HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n' "$1" >&3
  sed '1,/^\r$/d' <&3
  exec 3>&-
}
