#!/usr/bin/env bash
# SIMPLER's four WidowX tasks, visual matching, 24 fixed episodes each: a table beside published rows, and every episode
# in results.jsonl. Interrupt it anywhere and type the same command: it goes on.
#
#   bash scripts/eval_simpler.sh [CHECKPOINT] [--expert] [--random] [--out DIR] [-- --key value ...]
#
# CHECKPOINT: directory or hub name of a policy fine-tuned on BridgeData's actions (configs/data/bridge.yaml).
# --expert, --random: the scripted expert and random actions too, or alone. --out: where all is written (runs/simpler).
# After --: settings of configs/eval/simpler.yaml, such as --execute_steps 1 --workers 4; all are recorded.
# mani-skill's files are looked for in MS_ASSET_DIR; without them nothing starts, and the commands that get them are said.
set -euo pipefail
cd "$(dirname "$0")/.."
benchmark=simpler
source scripts/closed_loop.sh

python scripts/simpler_table.py
evaluate "$@"
python scripts/simpler_table.py "$out"
