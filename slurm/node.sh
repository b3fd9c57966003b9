#!/usr/bin/env bash
# One node of ppo.sbatch: torchrun with a process for each GPU, which meets those of the other nodes on the first one.
set -euo pipefail

refuse() {
  echo "error: node $(hostname): $*" >&2
  exit 2
}
# Slurm's default is one core a task: the processes of all GPUs would take turns on it. What Slurm has given may be fewer
# than what this step can see (nproc counts those, but for OMP_NUM_THREADS).
cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)
[ "${SLURM_CPUS_ON_NODE:-$cores}" -ge "$cores" ] || cores=$SLURM_CPUS_ON_NODE
[ "$cores" -ge "$PROCESSES_PER_NODE" ] || refuse "$cores core(s) for $PROCESSES_PER_NODE processes; ask for more:" \
  "sbatch --cpus-per-gpu=8, or --exclusive for whole nodes"
# gloo, which exchanges what lies on CPUs, announces the address that the node's own name has
address=$(getent hosts "$(hostname)" | awk 'NR == 1 { print $1 }' || true)
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ] && [ -z "${GLOO_SOCKET_IFNAME:-}" ]; then
  case $address in
    127.* | ::1) refuse "its name has the address $address here, where other nodes cannot reach it;" \
      "set GLOO_SOCKET_IFNAME in slurm/env.sh to an interface that they can, e.g. ib0" ;;
  esac
fi

# Slurm sends a signal to every process of a step, often twice (preemption, scontrol requeue, scancel again). A second
# one would have torchrun leave its processes alone in the middle of saving, and end those themselves. So neither sees
# SIGTERM: it is ignored from the start, which --signals-to-handle and the run (run/signals.py) leave as it is, and
# the processes get one SIGUSR1 from here. They save, leave together, and torchrun ends with them.
torchrun="" relayed=no
relay() {
  trap '' TERM USR1
  relayed=yes
  [ -n "$torchrun" ] || exit 143
  pkill -USR1 -P "$torchrun" || kill -KILL "$torchrun" # without processes yet, it still waits for other nodes
}
trap relay TERM USR1

# torchrun; a SIGUSR1 that is sent to the whole step does not end it
launcher='import signal; signal.signal(signal.SIGUSR1, lambda *_: None)
from torch.distributed.run import main; main()'

is_host=false
[ "$SLURM_NODEID" = 0 ] && is_host=true
export TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE='[rank ${rank}] ' # what torchrun puts before each line of output
mkdir -p "$NODE_LOGS/node_$SLURM_NODEID"
(
  trap '' TERM
  exec "$PYTHON" -c "$launcher" \
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$PROCESSES_PER_NODE" --max-restarts=0 \
    --rdzv-backend=c10d --rdzv-endpoint="$RENDEZVOUS" --rdzv-id="$RENDEZVOUS_ID" --rdzv-conf="is_host=$is_host" \
    --log-dir="$NODE_LOGS/node_$SLURM_NODEID" --redirects=3 --tee=3 --signals-to-handle=SIGUSR2 \
    -m "starling_train.$COMMAND" "$@"
) &
torchrun=$!

code=0
wait "$torchrun" || code=$?
if [ "$relayed" = yes ]; then # the signal may have ended the wait
  code=0
  wait "$torchrun" || code=$?
fi
exit "$code"
