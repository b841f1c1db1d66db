#!/usr/bin/env bash
# What does each action head, and each backbone whose weights can be had here, solve after the same 100 demonstrations? On the
# episodes, labels and pretrained model of scripts/quickstart.sh. Interrupt it anywhere and type the same command: it goes on.
# About 15 minutes for the heads on 2 cores; SmolLM2-135M takes an hour more (--backbones no leaves it out).
#
#   bash scripts/compare_heads.sh [--quickstart DIR] [--backbones yes|no]
set -euo pipefail
cd "$(dirname "$0")/.."

quickstart=runs/quickstart backbones=yes
while (($#)); do
  case "$1" in
    -h | --help) sed -n '2,7p' scripts/compare_heads.sh | cut -c3-; exit 0 ;;
    --quickstart | --backbones) [[ $# -ge 2 ]] || { echo "compare_heads.sh: $1 needs a value" >&2; exit 2; } ;;
    *) echo "compare_heads.sh: unknown word '$1'; see --help" >&2; exit 2 ;;
  esac
  declare "${1#--}=$2"
  shift 2
done
[[ -e $quickstart/pretrain/manifest.json ]] ||
  { echo "compare_heads.sh: $quickstart has no pretrained model; run scripts/quickstart.sh first" >&2; exit 1; }

bash scripts/setup.sh
source .venv/bin/activate
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
trap 'echo "compare_heads.sh: interrupted; the same command goes on where it stopped" >&2; exit 130' INT TERM
out=$quickstart/heads demonstrations=(--data.path "$quickstart/demonstrations" --data.demonstrations "{PushCubeDirections: 100}")

for head in l1_chunk l1_pool flow bins fast; do
  words=() # 600 steps, the backbone at 0.3 of the rate; words of actions are new to the backbone and need more of both
  case $head in bins | fast) words=(--rates.backbone 1.0 --training.steps 1800) ;; esac
  python scripts/finetune_vla.py --config configs/vla/finetune_quickstart.yaml --policy.path "$quickstart/pretrain" \
    "${demonstrations[@]}" --data.features "$quickstart/demonstration_features" --head.name "$head" "${words[@]}" \
    --out "$out/$head"
done
python scripts/evaluate.py --config configs/eval/heads.yaml --policies "$out" --out "$out/evaluate"
[[ $backbones == yes ]] || exit 0
python scripts/pretrain_vla.py --config configs/vla/pretrain_smollm2.yaml --store "$quickstart/episodes" \
  --labels "$quickstart/labels" --lam "$quickstart/lam" --out "$quickstart/pretrain_smollm2"
python scripts/finetune_vla.py --config configs/vla/finetune_smollm2.yaml --policy.path "$quickstart/pretrain_smollm2" \
  "${demonstrations[@]}" --out "$out/timm_lm"
python scripts/evaluate.py --config configs/eval/backbones.yaml --policies "$out" --out "$out/evaluate_backbones"
