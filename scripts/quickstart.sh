#!/usr/bin/env bash
# The whole chain on one small machine: simulated episodes -> latent actions -> audit -> labels -> pretraining ->
# fine-tuning -> closed loop -> report.html. Interrupt it anywhere and type the same command: it goes on.
#
#   bash scripts/quickstart.sh [--profile default|smoke] [--out DIR]
set -euo pipefail
cd "$(dirname "$0")/.."

profile=default out=
usage() { sed -n '2,5p' scripts/quickstart.sh | cut -c3-; }
while (($#)); do
  case "$1" in
    --profile | --out) [[ $# -ge 2 ]] || { echo "quickstart.sh: $1 needs a value" >&2; exit 2; } ;;&
    --profile) profile=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "quickstart.sh: unknown word '$1'; it takes --profile default|smoke and --out DIR" >&2; exit 2 ;;
  esac
done
case "$profile" in
  default) name=quickstart budgets=(10 25 50 100) stock=20 ;;
  smoke) name=smoke budgets=(8) stock= ;;
  *) echo "quickstart.sh: unknown profile '$profile'; there are default and smoke" >&2; exit 2 ;;
esac
out=${out:-runs/$name}
most=${budgets[-1]}

bash scripts/setup.sh
source .venv/bin/activate
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
trap 'echo "quickstart.sh: interrupted; the same command goes on where it stopped" >&2; exit 130' INT TERM

# stage SCRIPT CONFIG [--key value ...]: one step of the chain; it says so and returns when it was done before.
stage() { python "scripts/$1.py" --config "configs/$2.yaml" "${@:3}"; }
# Every two steps that do not need each other share the two cores.
both() { for pid in "$@"; do wait "$pid"; done; }

# 1. Episodes: action-free video from several cameras, and a few demonstrations with actions.
stage collect_maniskill "episodes/video_$name" --out "$out/episodes"
stage collect_maniskill "episodes/demonstrations_$name" --out "$out/demonstrations"
stage cache_features features/vit_small --store "$out/episodes" --out "$out/features"
stage cache_features features/vit_small --store "$out/demonstrations" --out "$out/demonstration_features"

# 2. Latent action models: ours, and the rows that it is compared with.
# 4. Labels for the action-free video, and 5. pretraining on them: no action is seen.
lam() {
  stage train_lam "lam/${3:-$name}" --data.video.store "$out/episodes" --data.video.features "$out/features" \
    --objective "$1" --out "$out/$2" "${@:4}"
}
ours() {
  lam self_cross lam
  stage label_latents lam/label --lam "$out/lam" --store "$out/episodes" --features "$out/features" --out "$out/labels"
  accelerate launch --num_processes 1 scripts/pretrain_vla.py --config "configs/vla/pretrain_$name.yaml" \
    --store "$out/episodes" --features "$out/features" --labels "$out/labels" --lam "$out/lam" --out "$out/pretrain"
  lam action_supervised lam_supervised "$name" --hidden_actions true
}
rows() {
  lam self lam_self
  lam mismatched lam_mismatched
  lam self_cross lam_transformer "transformer_$name"
}
ours & a=$!
rows & both $a $!

# 3. Is the latent action about the action?
stage audit_lam "lam/audit_$name" --data "$out/episodes" --features "$out/features" --out "$out/audit" --lams "{
  self_cross: $out/lam, self: $out/lam_self, mismatched: $out/lam_mismatched, supervised: $out/lam_supervised,
  self_cross_transformer: $out/lam_transformer}" & audit=$!

# 6. Fine-tuning on few demonstrations, with and without that pretraining.
finetune() {
  stage finetune_vla "vla/finetune_$name" --policy.path "$out/pretrain" --policy.fresh_weights "$3" \
    --data.path "$out/demonstrations" --data.features "$out/demonstration_features" --data.demonstrations "$2" \
    --out "$out/finetune/$1"
}
pair() {
  finetune "${1}latent_pretrained$2" "$3" false & local a=$!
  finetune "${1}no_pretraining$2" "$3" true & both $a $!
}
for budget in "${budgets[@]}"; do pair "" "_$budget" "{PushCubeDirections: $budget}"; done
if [[ $stock ]]; then
  pair stock_ "" "{PushCube-v1: $stock, PullCube-v1: $stock, PickCube-v1: $stock, StackCube-v1: $stock}"
fi

both "$audit"

# 7. Closed loop on unseen seeds.  8. The pages: every episode, and the whole run.
stage evaluate "eval/$name" --policies "$out/finetune" --out "$out/evaluate"
python scripts/report_evaluation.py --evaluation "$out/evaluate"
python scripts/report.py --run "$out"
echo "Done: open $out/report.html and $out/evaluate/evaluation.html"
