#!/usr/bin/env bash
# Four of ManiSkill's tasks, 50 unseen initial states each: a table with intervals, and every episode in results.jsonl.
# Interrupt it anywhere and type the same command: it goes on.
#
#   bash scripts/eval_maniskill.sh [CHECKPOINT] [--expert] [--random] [--out DIR] [-- --key value ...]
#
# CHECKPOINT: directory or hub name of a fine-tuned policy. --expert, --random: the scripted experts and
# random actions too, or alone. --out: where all is written (runs/maniskill). After --: settings of
# configs/eval/maniskill.yaml, such as --workers 4 or
# --benchmark_options '{camera_jitter: {translation_m: 0.03, rotation_deg: 3}}'; all are recorded.
set -euo pipefail
cd "$(dirname "$0")/.."
benchmark=maniskill
source scripts/closed_loop.sh

evaluate "$@"
python scripts/success_table.py "$out"
