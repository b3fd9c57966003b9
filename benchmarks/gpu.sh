#!/usr/bin/env bash
# Everything that is measured on one NVIDIA GPU of 80 GB, in one run of about half an hour: benchmarks/gpu.sh DIR
# DIR takes the figures as JSON and text, and a random checkpoint of Mistral-7B's shapes (14.5 GB, deleted at the end).
set -euo pipefail
out=$1
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
mkdir -p "$out"
nvidia-smi --query-gpu=name,memory.total --format=csv,noheader | tee "$out/card.txt"

# the whole 7B-shaped SNR scan: seconds, share of the fp64 arithmetic and of reading; and one matrix beside svdvals
"$python" "$here/snr.py" --device cuda kernel | tee "$out/snr_kernel.txt"
"$python" "$here/snr.py" write "$out/7b"
"$python" "$here/snr.py" --device cuda scan "$out/7b" | tee "$out/snr_scan.txt"
rm -r "$out/7b"

# captured decoding steps against generate; a failure is written down and the measurements go on
"$python" -m pytest -q "$here/../tests/rollout/test_slots.py" -k on_a_gpu 2>&1 | tail -20 | tee "$out/tests.txt" || true

# decoding: slots with CUDA graphs, generate, continuous batching
"$python" "$here/rollout.py" --model-shape 7b --device cuda --dtype bfloat16 --prompts 128 --slots 64 --limit 512 \
  --mean 192 --rounds 1 | tee "$out/rollout.txt"

# a whole step: 256 prompt and 512 response tokens; a twin critic of 25 % would need some 100 GB, so 10 % train there
for critic in head twin; do
  if [ "$critic" = head ]; then percent=25; else percent=10; fi
  "$python" "$here/ppo_step.py" --model-shape 7b --device cuda --dtype bfloat16 --critic "$critic" --percent "$percent" --prompts 64 \
    --prompt 256 --limit 512 --mean-response 512 --epochs 2 --slots 64 --tokens-per-microbatch 8192 --steps 1 \
    --gradient-checkpointing --out "$out/step_$critic.json"
done
