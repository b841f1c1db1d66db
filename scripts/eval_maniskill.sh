#!/usr/bin/env bash
# Four of ManiSkill's tasks, 50 unseen initial states each: a table with intervals, and every episode in results.jsonl.
# Interrupt it anywhere and type the same command: it goes on.
#
#   bash scripts/eval_maniskill.sh [CHECKPOINT] [--expert] [--random] [--out DIR] [-- --key value ...]
#
# CHECKPOINT: directory of a fine-tuned policy. --expert, --random: the scripted experts and random actions too, or alone.
# --out: where all is written (runs/maniskill). After --: settings of configs/eval/maniskill.yaml, such as
# --benchmark_options '{camera_jitter: {translation_m: 0.03, rotation_deg: 3}}' --workers 4; all are recorded.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "eval_maniskill.sh: $*; see --help" >&2; exit 2; }
checkpoint= out=runs/maniskill names=()
while (($#)); do
  case "$1" in
    -h | --help) sed -n '2,9p' scripts/eval_maniskill.sh | cut -c3-; exit 0 ;;
    --expert | --random) names+=("${1#--}"); shift ;;
    --out) [[ $# -ge 2 ]] || fail "--out needs a value"; out=$2; shift 2 ;;
    --) shift; break ;;
    -*) fail "unknown word '$1'" ;;
    *) [[ ! $checkpoint ]] || fail "one CHECKPOINT, not '$checkpoint' and '$1'"; checkpoint=$1; shift ;;
  esac
done
[[ $checkpoint || ${names[*]} ]] || fail "a CHECKPOINT, --expert or --random is needed"
[[ ! $checkpoint || -d $checkpoint ]] || fail "there is no directory $checkpoint"

bash scripts/setup.sh
source .venv/bin/activate
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

tasks="[{task: PushCube-v1, episodes: 50}, {task: PullCube-v1, episodes: 50}, {task: PickCube-v1, episodes: 50},
  {task: StackCube-v1, episodes: 50}]"
arms=
[[ ! $checkpoint ]] || arms="{name: policy, policy: ., tasks: $tasks}"
for name in ${names[@]+"${names[@]}"}; do arms+="${arms:+, }{name: $name, policy: $name, tasks: $tasks}"; done
python scripts/evaluate.py --config configs/eval/maniskill.yaml --policies "${checkpoint:-.}" --arms "[$arms]" --out "$out" "$@"
python scripts/success_table.py "$out"
python scripts/report_evaluation.py --evaluation "$out"
