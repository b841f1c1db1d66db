#!/usr/bin/env bash
# SIMPLER's four WidowX tasks, visual matching, 24 fixed episodes each: a table beside published rows, and every episode
# in results.jsonl. Interrupt it anywhere and type the same command: it goes on.
#
#   bash scripts/eval_simpler.sh [CHECKPOINT] [--expert] [--random] [--out DIR] [-- --key value ...]
#
# CHECKPOINT: directory of a policy fine-tuned on BridgeData's actions (configs/data/bridge.yaml). --expert, --random: the
# scripted expert and random actions too, or alone. --out: where all is written (runs/simpler). After --: settings of
# configs/eval/simpler.yaml, such as --execute_steps 1 --workers 4; all are recorded with each episode.
# mani-skill's files are looked for in MS_ASSET_DIR; without them nothing starts, and the commands that get them are said.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "eval_simpler.sh: $*; see --help" >&2; exit 2; }
checkpoint= out=runs/simpler names=()
while (($#)); do
  case "$1" in
    -h | --help) sed -n '2,11p' scripts/eval_simpler.sh | cut -c3-; exit 0 ;;
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
python scripts/simpler_table.py

tasks="[{task: StackGreenCubeOnYellowCubeBakedTexInScene-v1, episodes: 24}, {task: PutCarrotOnPlateInScene-v1, episodes: 24},
  {task: PutSpoonOnTableClothInScene-v1, episodes: 24}, {task: PutEggplantInBasketScene-v1, episodes: 24}]"
arms=
[[ ! $checkpoint ]] || arms="{name: policy, policy: ., tasks: $tasks}"
for name in ${names[@]+"${names[@]}"}; do arms+="${arms:+, }{name: $name, policy: $name, tasks: $tasks}"; done
python scripts/evaluate.py --config configs/eval/simpler.yaml --policies "${checkpoint:-.}" --arms "[$arms]" --out "$out" "$@"
python scripts/simpler_table.py "$out"
python scripts/report_evaluation.py --evaluation "$out"
