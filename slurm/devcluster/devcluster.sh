#!/usr/bin/env bash
# A real multi-node Slurm cluster on one machine: slurmctld, slurmdbd + MariaDB, munge and one slurmd
# per node, without systemd or cgroups. Everything lives in one folder and on loopback; nothing in
# /etc is touched. As root on a bare Debian machine it installs the packages itself; with the
# packages there, any user can run it. README.md beside this file explains the knobs.
set -uo pipefail
export LC_ALL=C

D=${BATCHGEN_DEVCLUSTER_DIR:-/tmp/batchgen-devcluster-$(id -u)}
NODES=${BATCHGEN_DEVCLUSTER_NODES:-4}
CPUS=${BATCHGEN_DEVCLUSTER_CPUS:-4}
GPUS=${BATCHGEN_DEVCLUSTER_GPUS:-2}
MEM=${BATCHGEN_DEVCLUSTER_MEM:-4000}              # MiB of a node
PORT=${BATCHGEN_DEVCLUSTER_PORT:-16800}           # +6 MariaDB, +17 slurmctld, +19 slurmdbd, +20+k slurmd
GRACE=${BATCHGEN_DEVCLUSTER_GRACE:-3}             # s between the preemption signal and the end
CRED_EXPIRE=${BATCHGEN_DEVCLUSTER_CRED_EXPIRE:-10} # s before a requeued job starts; > KillWait + 4
EXTRA=${BATCHGEN_DEVCLUSTER_EXTRA:-}              # further lines of slurm.conf; a later key wins
CGROUP=${BATCHGEN_DEVCLUSTER_CGROUP:-0}           # 1: memory limits by cgroup v1, as root

ME=$(id -un)
HOST=$(hostname -s)
PATH=$PATH:/usr/sbin:/sbin
PACKAGES=(slurmctld slurmd slurm-client slurmdbd munge mariadb-server-core mariadb-client-core)
COMMANDS=(slurmctld slurmd sbatch slurmdbd munged mariadbd mariadb)
START=${EPOCHREALTIME/./}
export SLURM_CONF=$D/etc/slurm.conf

# ------------------------------------------------------------------------------------------- tools
log() {
  local cs=$(((${EPOCHREALTIME/./} - START) / 10000))
  printf '[%3d.%02d s] %s\n' $((cs / 100)) $((cs % 100)) "$*"
}
die() {
  log "error: $*" >&2
  exit 1
}

wait_for() { # seconds command...: until the command succeeds
  local end=$((${EPOCHREALTIME/./} + $1 * 1000000))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "${EPOCHREALTIME/./}" -lt "$end" ] || return 1
    sleep 0.1
  done
}

ours() { grep -qzxF "SLURM_CONF=$SLURM_CONF" "/proc/$1/environ" 2>/dev/null; }

# A pid file is believed only if that process runs the daemon and was started for this cluster.
alive() { # name: the pid file's; the daemon is its first part
  local pid
  pid=$(cat "$D/run/$1.pid" 2>/dev/null) || return 1
  [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "${1%%.*}" ] && ours "$pid"
}

stop_daemon() { # name
  local pid
  if alive "$1"; then
    pid=$(cat "$D/run/$1.pid")
    kill -TERM "$pid" 2>/dev/null
    wait_for 8 test ! -d "/proc/$pid" || kill -KILL "$pid" 2>/dev/null
    wait_for 3 test ! -d "/proc/$pid"
  fi
  rm -f "$D/run/$1.pid"
}

# ----------------------------------------------------------------------------------------- install
installed() { [ "$(command -v "${COMMANDS[@]}" | wc -l)" = ${#COMMANDS[@]} ]; }

cmd_install() {
  local output
  installed && return 0
  [ "$(id -u)" = 0 ] || die "not installed, and only root can: apt-get install ${PACKAGES[*]}"
  command -v apt-get >/dev/null || die "no apt-get here; install Slurm, munge and MariaDB by hand"
  exec 9>/tmp/batchgen-devcluster-install.lock
  flock 9 # several clusters may come up at once
  installed && return 0
  log "installing ${PACKAGES[*]}"
  apt-get update -qq >/dev/null 2>&1
  output=$(DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    "${PACKAGES[@]}" 2>&1) || die "apt-get failed: $(tail -n 3 <<<"$output")"
  exec 9>&- # daemons must not inherit it
}

# ------------------------------------------------------------------------------------ configuration
write_folders() {
  local k
  mkdir -p "$D"/{etc,run,log,state,db,dev,munge} || die "cannot write $D"
  for k in $(seq "$NODES"); do mkdir -p "$D/spool/node$k"; done
  chmod 755 "$D"
  chmod 700 "$D/munge" "$D/db"
  if [ ! -s "$D/munge/key" ]; then
    head -c 1024 /dev/urandom >"$D/munge/key"
    chmod 400 "$D/munge/key"
  fi
  # Job ids of an earlier, wiped cluster must not come back: submitit believes any result file it
  # finds under its job's id. They start at a number made from the time, kept with the state.
  [ -s "$D/state/first_job_id" ] ||
    echo $((($(date +%s) - 1750000000) / 10 % 60000000)) >"$D/state/first_job_id"
}

write_gres() {
  local g k files="/dev/tty[0-$((GPUS - 1))]" # where mknod is not allowed
  # A GPU needs a character device: with a plain file CUDA_VISIBLE_DEVICES stays empty.
  for g in $(seq 0 $((GPUS - 1))); do
    [ -c "$D/dev/gpu$g" ] || mknod "$D/dev/gpu$g" c 1 3 2>/dev/null
  done
  [ -c "$D/dev/gpu$((GPUS - 1))" ] && files="$D/dev/gpu[0-$((GPUS - 1))]"
  for k in $(seq "$NODES"); do
    [ "$GPUS" = 0 ] || echo "NodeName=node$k Name=gpu Type=fake File=$files"
  done >"$D/etc/gres.conf"
}

write_slurm_conf() {
  local k track=linuxproc task=none gres="Gres=gpu:fake:$GPUS" plugins
  plugins=$(ls -d /usr/lib/*/slurm-wlm 2>/dev/null | head -n 1)
  [ "$CGROUP" = 1 ] && track=cgroup && task=cgroup
  [ "$GPUS" = 0 ] && gres=
  cat <<CONF
ClusterName=devcluster
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$((PORT + 17))
SlurmUser=$ME
SlurmdUser=$ME
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$D/run/munge.sock,cred_expire=$CRED_EXPIRE
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
PluginDir=$plugins
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool/%n
SlurmctldPidFile=$D/run/slurmctld.pid
SlurmdPidFile=$D/run/slurmd.%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd.%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/$track
TaskPlugin=task/$task
PropagateResourceLimits=NONE
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
LaunchParameters=test_exec
ReturnToService=1
# A step over its memory is killed within a second or two, as cgroups do on a real cluster.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
# Short timers: a lost node is noticed after 15 to 30 s.
SlurmctldTimeout=10
SlurmdTimeout=15
MessageTimeout=10
KillWait=3
UnkillableStepTimeout=120
CompleteWait=0
InactiveLimit=0
MinJobAge=60
Waittime=0
OverTimeLimit=0
# Scheduling: every second, with preemption of main by high.
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0,max_rpc_cnt=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=$((MEM / CPUS))
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PreemptExemptTime=0
JobRequeue=1
MaxArraySize=1001
MaxJobCount=20000
FirstJobId=$(cat "$D/state/first_job_id")
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 19))
AccountingStoragePass=$D/run/munge.sock
AccountingStorageTRES=gres/gpu
JobCompType=jobcomp/none
GresTypes=gpu
NodeName=DEFAULT CPUs=$CPUS Sockets=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=$MEM $gres State=UNKNOWN
CONF
  for k in $(seq "$NODES"); do
    echo "NodeName=node$k NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT + 20 + k))"
  done
  cat <<CONF
PartitionName=DEFAULT Nodes=ALL MaxTime=INFINITE DefaultTime=10 State=UP
PartitionName=main Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=$GRACE
PartitionName=high Default=NO PriorityTier=10 PreemptMode=OFF
$EXTRA
CONF
}

write_dbd_conf() {
  cat <<CONF
AuthType=auth/munge
AuthInfo=socket=$D/run/munge.sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((PORT + 19))
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=$ME
DebugLevel=verbose
LogFile=$D/log/slurmdbd.log
PidFile=$D/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((PORT + 6))
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
CommitDelay=1
CONF
}

write_configuration() {
  write_folders
  write_gres
  write_slurm_conf >"$D/etc/slurm.conf"
  (umask 077 && write_dbd_conf >"$D/etc/slurmdbd.conf")
  printf '%s\n' CgroupAutomount=no CgroupPlugin=cgroup/v1 ConstrainRAMSpace=yes >"$D/etc/cgroup.conf"
}

# ----------------------------------------------------------------------------------------- daemons
start_munged() {
  alive munged && return 0
  rm -f "$D"/run/munge*
  munged --force --num-threads=10 --key-file="$D/munge/key" --seed-file="$D/munge/seed" \
    --socket="$D/run/munge.sock" --pid-file="$D/run/munged.pid" --log-file="$D/log/munged.log" \
    >"$D/log/munged.out" 2>&1 || die "munged did not start: $(cat "$D/log/munged.out")"
  wait_for 5 munge --socket="$D/run/munge.sock" -n -o /dev/null || die "munged does not answer"
}

sql() { mariadb --no-defaults --protocol=socket -S "$D/run/db.sock" -uroot -e "$1"; }

start_mariadbd() {
  alive mariadbd && return 0
  if [ ! -d "$D/db/mysql" ]; then
    mariadb-install-db --no-defaults --user="$ME" --datadir="$D/db" --skip-test-db \
      --skip-name-resolve --auth-root-authentication-method=normal >"$D/log/db-install.log" 2>&1 ||
      die "mariadb-install-db failed, see $D/log/db-install.log"
  fi
  rm -f "$D/run/db.sock"
  setsid mariadbd --no-defaults --user="$ME" --datadir="$D/db" --socket="$D/run/db.sock" \
    --pid-file="$D/run/mariadbd.pid" --bind-address=127.0.0.1 --port=$((PORT + 6)) \
    --skip-name-resolve --innodb-buffer-pool-size=64M --innodb-log-file-size=32M \
    --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900 --performance-schema=OFF \
    --skip-log-bin </dev/null >"$D/log/mariadb.log" 2>&1 &
  disown
  wait_for 30 sql 'select 1' || die "MariaDB did not start: $(tail -n 3 "$D/log/mariadb.log")"
  sql "create database if not exists slurm_acct_db;
       create user if not exists 'slurm'@'127.0.0.1' identified by 'slurm';
       grant all on slurm_acct_db.* to 'slurm'@'127.0.0.1';" || die "MariaDB refused the set-up"
}

port_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

start_slurmdbd() {
  alive slurmdbd && return 0
  slurmdbd </dev/null >>"$D/log/slurmdbd.out" 2>&1 || die "slurmdbd failed, see $D/log/slurmdbd.log"
  wait_for 30 port_open $((PORT + 19)) || die "slurmdbd: $(tail -n 3 "$D/log/slurmdbd.log")"
  wait_for 10 sacctmgr -n list cluster || die "sacctmgr cannot reach slurmdbd"
  [ -n "$(sacctmgr -nP list cluster devcluster format=cluster)" ] ||
    sacctmgr -i add cluster devcluster >>"$D/log/sacctmgr.log" 2>&1
}

start_slurmctld() {
  alive slurmctld && return 0
  slurmctld </dev/null >>"$D/log/slurmctld.out" 2>&1 ||
    die "slurmctld failed: $(tail -n 3 "$D/log/slurmctld.out" "$D/log/slurmctld.log")"
  wait_for 20 scontrol ping || die "slurmctld does not answer"
}

start_slurmd() { # k
  alive "slurmd.node$1" && return 0
  slurmd -N "node$1" </dev/null >>"$D/log/slurmd.node$1.out" 2>&1 ||
    die "slurmd of node$1 failed, see $D/log/slurmd.node$1.log"
}

nodes_ready() {
  [ "$(sinfo -h -N -p main -t idle,mix,alloc -o %N | sort -u | wc -l)" -ge "$NODES" ] &&
    ! sinfo -h -o %T | grep -q '[*]'
}

# --------------------------------------------------------------------------------- processes of jobs
step_daemons() { # node ("*": any): slurmstepd processes of this cluster, known by their open log
  local pid file
  for pid in $(pgrep -x slurmstepd); do
    for file in "/proc/$pid/fd"/*; do
      # shellcheck disable=SC2053
      [[ $(readlink "$file" 2>/dev/null) == $D/log/slurmd.$1.log ]] && echo "$pid" && break
    done
  done
}

job_processes() { # node (regular expression): known by their environment, whoever their parent is
  local file pid
  for file in $(grep -lzxE "SLURMD_NODENAME=$1" /proc/[0-9]*/environ 2>/dev/null); do
    pid=${file#/proc/}
    pid=${pid%/environ}
    [ "$pid" != $$ ] && ours "$pid" && echo "$pid"
  done
}

tree() { # pid: it and its descendants
  local child
  echo "$1"
  for child in $(pgrep -P "$1"); do tree "$child"; done
}

kill_processes() { # node pattern for step_daemons, the same as a regular expression
  local pid pids
  pids=$(for pid in $(step_daemons "$1"); do tree "$pid"; done && job_processes "$2")
  # shellcheck disable=SC2086
  [ -z "$pids" ] || kill -KILL $pids 2>/dev/null
}

# ---------------------------------------------------------------------------------------- commands
cmd_up() {
  cmd_install
  write_configuration
  start_munged
  start_mariadbd
  start_slurmdbd
  start_slurmctld
  local k
  for k in $(seq "$NODES"); do start_slurmd "$k"; done
  wait_for 20 nodes_ready || die "nodes are not ready:"$'\n'"$(sinfo -N -l)"
  probe
  log "up: $NODES nodes of $CPUS CPUs and $GPUS fake GPUs; now: export SLURM_CONF=$SLURM_CONF"
}

probe() { # a job on every node that accounting gets to know
  local out id
  # shellcheck disable=SC2016
  out=$(timeout 30 srun -J probe -N"$NODES" -n"$NODES" -t1 --mem=50 \
    /bin/sh -c 'echo ran $SLURM_JOB_ID' 2>"$D/log/probe.err")
  [ "$(grep -c ran <<<"$out")" = "$NODES" ] || die "the probe job failed: $(cat "$D/log/probe.err")"
  id=$(awk '{print $2; exit}' <<<"$out")
  wait_for 15 sh -c "sacct -nXP -j $id -o State | grep -q COMPLETED" || die "sacct misses job $id"
}

cmd_down() {
  local k file
  [ -d "$D" ] || return 0
  if alive slurmctld; then
    timeout 10 scancel --quiet --user="$ME" 2>/dev/null
    wait_for 8 sh -c '[ -z "$(squeue -h -o %i -t PD,R,CG,S)" ]'
  fi
  for file in "$D"/run/slurmd.*.pid; do
    [ -e "$file" ] && stop_daemon "$(basename "$file" .pid)" &
  done
  wait
  kill_processes '*' 'node[0-9]+'
  [ "$CGROUP" != 1 ] || for k in $(seq "$NODES"); do
    find /sys/fs/cgroup/*/"slurm_node$k" -depth -type d -exec rmdir {} + 2>/dev/null
  done
  stop_daemon slurmctld
  stop_daemon slurmdbd
  stop_daemon mariadbd &
  stop_daemon munged &
  wait
  rm -f "$D"/run/*
  log "down"
}

cmd_reset() {
  cmd_down
  rm -rf "$D"/{etc,run,log,state,db,dev,munge,spool}
  rmdir "$D" 2>/dev/null # stays when something else lies in it
  return 0
}

cmd_status() {
  local name rc=0
  for name in munged mariadbd slurmdbd slurmctld $(seq -f slurmd.node%g "$NODES"); do
    if alive "$name"; then
      echo "$name: process $(cat "$D/run/$name.pid")"
    else
      echo "$name: not running"
      rc=3
    fi
  done
  alive slurmctld && sinfo -N -o '%N %T %c %m %G %P'
  return $rc
}

cmd_node_kill() { # k: a power loss; slurmd and every process of its jobs die at once
  local name=slurmd.node$1
  alive "$name" && kill -KILL "$(cat "$D/run/$name.pid")"
  rm -f "$D/run/$name.pid"
  kill_processes "node$1" "node$1"
  log "node$1 killed"
}

cmd_node_up() { # k
  start_slurmd "$1"
  # Refused while the node is not down or drained, and not needed then.
  sleep 0.5
  scontrol update nodename="node$1" state=resume >/dev/null 2>&1
  log "node$1 up"
}

node_number() {
  [[ ${1:-} =~ ^[0-9]+$ ]] && [ "$1" -ge 1 ] && [ "$1" -le "$NODES" ] ||
    die "a node is a number from 1 to $NODES, not '${1:-}'"
}

usage() {
  cat <<TEXT
usage: $(basename "$0") COMMAND
  install        packages, as root
  up             start, or start again what is not running
  down           end all jobs, stop everything; keeps accounting
  reset          stop and delete
  status         daemons and nodes; exit status 3 when something is not running
  env            print what a shell needs: eval "\$($(basename "$0") env)"
  node-kill K    node K loses its power
  node-up K      ... and is back
  stop | start   slurmctld or slurmdbd: stop slurmdbd
TEXT
}

made() { [ -s "$SLURM_CONF" ] || die "no cluster in $D; make one with: $0 up"; }

case "${1:-}:${2:-}" in
  install: | up: | down: | reset: | status:) "cmd_$1" ;;
  env:) echo "export SLURM_CONF=$SLURM_CONF" ;;
  node-kill:* | node-up:*) made && node_number "${2:-}" && "cmd_${1/-/_}" "$2" ;;
  stop:slurmctld | stop:slurmdbd) made && stop_daemon "$2" && log "$2 stopped" ;;
  start:slurmctld | start:slurmdbd) made && "start_$2" && log "$2 started" ;;
  *)
    usage >&2
    exit 2
    ;;
esac
