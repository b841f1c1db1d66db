#!/usr/bin/env bash
# Does the latent action model matter for the policy? Labels of several latent action models and of none -> pretraining ->
# fine-tuning on few demonstrations -> closed loop on shared initial states -> README.md with success by number of
# demonstrations. What was fixed beforehand stands in docs/downstream.md. Interrupt it anywhere and type the same command: it
# goes on. On 2 cores about 2.5 hours with the budgets "10 50" and 4 with all.
#
#   bash scripts/settle_downstream.sh [--quick] [--out DIR] [--results DIR] [--seeds N] [--budgets "10 50"]
#
# --seeds: training seeds of every arm (10). --budgets: demonstrations to fine-tune on ("10 25 50 100"). --quick: all of it
# at a size that learns nothing (2 seeds, "4 8"), some minutes. --out: models (runs/downstream); --results: the page.
set -euo pipefail
cd "$(dirname "$0")/.."

quick= out= results= seeds= budgets=
fail() { echo "settle_downstream.sh: $*" >&2; exit 2; }
while (($#)); do
  case "$1" in
    --quick) quick=1; shift; continue ;;
    -h | --help) sed -n '2,10p' scripts/settle_downstream.sh | cut -c3-; exit 0 ;;
    --out | --results | --seeds | --budgets) [[ $# -ge 2 ]] || fail "$1 needs a value" ;;
    *) fail "unknown word '$1'; see --help" ;;
  esac
  declare "${1#--}=$2"
  shift 2
done
if [[ $quick ]]; then
  name=smoke evaluation=downstream_quick most=8 data_s=120 fixed_s=90 budget_s=80
  out=${out:-runs/downstream_quick} seeds=${seeds:-2} budgets=${budgets:-4 8}
else
  name=quickstart evaluation=downstream most=100 data_s=600 fixed_s=530 budget_s=570
  out=${out:-runs/downstream} seeds=${seeds:-10} budgets=${budgets:-10 25 50 100}
fi
results=${results:-$out/results}
[[ $seeds =~ ^[1-9][0-9]?$ ]] || fail "--seeds takes a number from 1 to 99, not '$seeds'"
for budget in $budgets; do
  [[ $budget =~ ^[1-9][0-9]*$ ]] && ((budget <= most)) || fail "--budgets takes numbers from 1 to $most, not '$budget'"
done
[[ $budgets =~ [0-9] ]] || fail "--budgets takes numbers from 1 to $most, such as \"10 50\""
budgets=$(printf '%s\n' $budgets | sort -nu | xargs)

bash scripts/setup.sh
source .venv/bin/activate
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
say() { echo "settle_downstream.sh: $*" >&2; }
lanes=()
stop() { # what runs in the background is a process group each, whose training saves its state before it ends
  local lane
  trap - EXIT
  for lane in "${lanes[@]}"; do kill -TERM -- "-$lane" 2>/dev/null || true; done
  wait || true
  for lane in "${lanes[@]}"; do while kill -0 -- "-$lane" 2>/dev/null; do sleep 0.2; done; done
}
trap stop EXIT
trap 'say "stopping"; stop; say "interrupted; the same command goes on where it stopped"; exit 130' INT TERM

# stage SCRIPT CONFIG [--key value ...]: one step; it returns at once when it was done before.
stage() { python "scripts/$1.py" --config "configs/$2.yaml" "${@:3}"; }

# 1. Video without actions to pretrain on, and demonstrations: one set for all arms and seeds.
stage collect_maniskill "episodes/video_$name" --out "$out/episodes"
stage collect_maniskill "episodes/demonstrations_$name" --out "$out/demonstrations"
stage cache_features features/vit_small --store "$out/episodes" --out "$out/features"
stage cache_features features/vit_small --store "$out/demonstrations" --out "$out/demonstration_features"

# 2. All arms of a training seed, one stage after the other.
all_of_seed() {
  local seed=$1 dir=$out/seed_$1 arm from words budget
  local video=(--store "$out/episodes" --features "$out/features")
  for arm in self self_cross supervised; do
    words=(--objective "$arm")
    [[ $arm == supervised ]] && words=(--objective action_supervised --hidden_actions true)
    stage train_lam "lam/$name" --data.video.store "$out/episodes" --data.video.features "$out/features" "${words[@]}" \
      --training.seed "$seed" --out "$dir/lam_$arm"
  done
  for arm in self self_cross supervised shuffled; do
    from=$arm words=()
    [[ $arm == shuffled ]] && from=self_cross words=(--shuffle true)
    stage label_latents lam/label "${video[@]}" --lam "$dir/lam_$from" "${words[@]}" --out "$dir/labels_$arm"
    stage pretrain_vla "vla/pretrain_$name" "${video[@]}" --labels "$dir/labels_$arm" --training.seed "$seed" \
      --out "$dir/pretrain_$arm"
  done
  for budget in $budgets; do
    for arm in self self_cross supervised shuffled none; do
      from=$arm words=()
      [[ $arm == none ]] && from=self_cross words=(--policy.fresh_weights true)
      stage finetune_vla "vla/finetune_$name" --data.path "$out/demonstrations" --data.features \
        "$out/demonstration_features" --data.demonstrations "{PushCubeDirections: $budget}" \
        --policy.path "$dir/pretrain_$from" "${words[@]}" --training.seed "$seed" --out "$dir/finetune_$budget/$arm"
    done
    stage evaluate "eval/$evaluation" --policies "$dir/finetune_$budget" --out "$dir/evaluate_$budget"
  done
}

# Seeds share the two cores: one process works on the even ones, one on the odd ones. A seed that is done with these very
# configurations and budgets is not looked at again.
key="$(cat configs/{episodes/{video,demonstrations}_$name,features/vit_small,lam/{$name,label},vla/{pretrain,finetune}_$name}.yaml \
  "configs/eval/$evaluation.yaml" | sha256sum | cut -c-12) $budgets"
is_done() { [[ $(cat "$out/seed_$1/done" 2>/dev/null) == "$key" ]]; }
lane() { # `seed` is no local variable: the trap at its end reads it
  local todo=() started=$SECONDS left
  exec 3>&2
  trap 'say "seed $seed stopped: $(tail -n 1 "$out/seed_$seed/log.txt")" 2>&3' EXIT
  trap 'trap - EXIT; exit 143' TERM
  for ((seed = $1; seed < seeds; seed += 2)); do is_done "$seed" || todo+=("$seed"); done
  left=${#todo[@]}
  for seed in "${todo[@]}"; do
    mkdir -p "$out/seed_$seed"
    say "seed $seed: what happens stands in $out/seed_$seed/log.txt"
    all_of_seed "$seed" >>"$out/seed_$seed/log.txt" 2>&1
    echo "$key" >"$out/seed_$seed/done"
    left=$((left - 1))
    say "seed $seed is done; this process has $left more, about $(((SECONDS - started) * left / (${#todo[@]} - left) / 60)) minutes"
  done
  trap - EXIT
}
minutes=$(((data_s + (seeds + 1) / 2 * (fixed_s + budget_s * $(wc -w <<<"$budgets"))) / 60))
say "$seeds training seeds, 5 arms, budgets $budgets: about $minutes minutes from nothing on 2 quiet cores"
set -m # each lane its own process group
lane 0 & lanes+=($!)
lane 1 & lanes+=($!)
set +m
failed=
for lane in "${lanes[@]}"; do wait "$lane" || failed=1; done
[[ ! $failed ]] || { say "not all seeds are done, see above; the same command goes on"; exit 1; }

# 3. The page, only when all is there.
python scripts/settle_downstream.py --runs "$out" --out "$results"
