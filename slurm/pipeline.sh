#!/usr/bin/env bash
# Scan, train, export and evaluate, as jobs that wait for one another: bash slurm/pipeline.sh [options of the training's
# sbatch]. Call it where the checkout is. A job that fails leaves those behind it cancelled.
set -euo pipefail

root=${STARLING_ROOT:-$PWD}
cd "$root"
# shellcheck source=env.sh
source "${STARLING_ENV:-slurm/env.sh}"
[ "${COMMAND:-ppo}" = ppo ] || { echo "COMMAND: pipeline.sh is for ppo, not for $COMMAND" >&2; exit 2; }
if [ -n "$(ls -A "$MODEL_DIR" 2>/dev/null)" ]; then
  echo "MODEL_DIR: $MODEL_DIR is there already, and not empty; give a new directory" >&2
  exit 2
fi
submit() { sbatch --parsable --kill-on-invalid-dep=yes "$@" | cut -d ';' -f 1; } # on a federation: number;cluster

scan=$RUN_DIR.snr
snr=$(submit --job-name=starling-snr slurm/command.sbatch snr "run_dir=$scan")
echo "snr $snr"
after=afterok:$snr
if [ "$REWARD_SERVER" = yes ]; then
  server=$(submit --dependency="$after" slurm/serve_reward.sbatch)
  echo "serve_reward $server"
  after=$after,after:$server # once it has started; ppo.sbatch waits until it answers
fi
# the run scans nothing itself: what was scanned is what is trained
ppo=$(submit --dependency="$after" "$@" slurm/ppo.sbatch "freeze.scan=$scan/snr.json")
echo "ppo $ppo"
if [ "$REWARD_SERVER" = yes ]; then # the server would wait for its time limit
  submit --job-name=starling-end --nodes=1 --ntasks=1 --time=5 --output=/dev/null --dependency="afterany:$ppo" \
    --wrap "scancel $server" >/dev/null
fi
export=$(submit --job-name=starling-export --dependency="afterok:$ppo" slurm/command.sbatch \
  export "run_dir=$RUN_DIR" "output=$MODEL_DIR")
echo "export $export"
evaluate=$(submit --job-name=starling-evaluate --dependency="afterok:$export" slurm/command.sbatch \
  evaluate "model.path=$MODEL_DIR" "run_dir=$RUN_DIR" "${EVALUATE[@]}")
echo "evaluate $evaluate"
