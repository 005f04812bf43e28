#!/usr/bin/env bash
# A SLURM of one node, this machine, for trying Snakemake's SLURM executor: needs root and Debian's packages
# slurm-wlm and munge, touches nothing outside its folder, and runs until it gets a signal.
#
#   tests/slurm/start_slurm.sh FOLDER [CPUS]
#
# When it is ready, it prints what to export in the shell that uses it.
#
# Two CPUs by default. No accounting, no cgroups, no enforced memory: a container may lack all three.
set -euo pipefail
folder=$(realpath -m "${1:?a folder for configuration, state and logs}")
cpus=${2:-2}
for program in munged slurmctld slurmd sinfo; do
  command -v "$program" >/dev/null || { echo "$program is missing: apt-get install slurm-wlm munge" >&2; exit 1; }
done
[ "$(id -u)" -eq 0 ] || { echo "start_slurm.sh needs root: slurmd starts jobs as their users" >&2; exit 1; }

mkdir -p "$folder"/{state,spool,log,munge,bin}
chmod 711 "$folder/munge"
host=$(hostname -s)
socket=$folder/munge/socket
[ -f "$folder/munge/key" ] || (umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")
read -r controller node < <(python3 -c "
import socket
free = [socket.socket() for _ in range(2)]
for one in free:
    one.bind(('127.0.0.1', 0))
print(*(one.getsockname()[1] for one in free))")

cat >"$folder/slurm.conf" <<END
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$controller
SlurmdPort=$node
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2
ReturnToService=2
KillWait=5
MinJobAge=86400
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus Gres=gpu:$cpus RealMemory=$(($(getconf _PHYS_PAGES) * $(getconf PAGESIZE) / 2**20))
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
END
for ((number = 0; number < cpus; number++)); do # files stand in for devices: SLURM only counts them
  [ -e "$folder/gpu$number" ] || mknod "$folder/gpu$number" c 1 3 2>/dev/null || touch "$folder/gpu$number"
  echo "NodeName=$host Name=gpu File=$folder/gpu$number"
done >"$folder/gres.conf"

export SLURM_CONF=$folder/slurm.conf
# Snakemake's jobs call srun without SLURM_CONF, as elsewhere the configuration is in /etc/slurm.
printf '#!/bin/sh\nSLURM_CONF="%s" exec "%s" "$@"\n' "$SLURM_CONF" "$(command -v srun)" >"$folder/bin/srun"
chmod +x "$folder/bin/srun"
pids=()
stop() { kill "${pids[@]}" 2>/dev/null || true; wait; }
trap stop EXIT
trap exit INT TERM
munged --foreground --force --socket="$socket" --key-file="$folder/munge/key" --pid-file="$folder/munge/pid" \
  --log-file="$folder/log/munged.log" --seed-file="$folder/munge/seed" >"$folder/log/munged.out" 2>&1 &
pids+=($!)
for _ in $(seq 50); do [ -S "$socket" ] && break; sleep 0.1; done
slurmctld -D -c >"$folder/log/slurmctld.out" 2>&1 &
pids+=($!)
slurmd -D -c >"$folder/log/slurmd.out" 2>&1 &
pids+=($!)
for _ in $(seq 100); do
  if [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ]; then
    echo "ready: export SLURM_CONF=$SLURM_CONF PATH=$folder/bin:\$PATH"
    wait -n "${pids[@]}" # until a signal comes, or one of them ends
    echo "one of the three daemons ended: see $folder/log" >&2
    exit 1
  fi
  sleep 0.2
done
echo "SLURM did not start: see $folder/log" >&2
exit 1
