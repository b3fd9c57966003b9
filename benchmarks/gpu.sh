#!/usr/bin/env bash
# Everything that is measured on one NVIDIA GPU, most valuable first, in ten minutes: benchmarks/gpu.sh DIR [--minutes N]
# DIR/gpu.json has the figures after every part. On a CPU, in miniature: benchmarks/gpu.sh DIR --miniature
set -euo pipefail
exec "${PYTHON:-python}" "$(dirname "$0")/gpu.py" "$@"
