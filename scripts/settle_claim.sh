#!/usr/bin/env bash
# Does cross-viewpoint reconstruction make latent actions more about the action? Episodes under seven nuisances -> features ->
# every arm with paired seeds -> effects with intervals -> README.md. What was fixed beforehand stands in docs/claim.md.
# Interrupt it anywhere and type the same command: it goes on. About 1 hour for the data and 3 for the models on 2 cores.
#
#   bash scripts/settle_claim.sh [--quick] [--out DIR] [--results DIR] [--seeds N] [--arms "[self, self_cross]"] [...]
#
# --quick: three nuisances, 48 episodes, 3 seeds of the main arms, 20 minutes. Further words go to scripts/settle_claim.py.
set -euo pipefail
cd "$(dirname "$0")/.."

quick= out= results= seeds= arms= words=() part=() episodes=400
fail() { echo "settle_claim.sh: $*" >&2; exit 2; }
while (($#)); do
  case "$1" in
    --quick) quick=1; shift; continue ;;
    -h | --help) sed -n '2,8p' scripts/settle_claim.sh | cut -c3-; exit 0 ;;
    --*) [[ $# -ge 2 ]] || fail "$1 needs a value" ;;
    *) fail "unknown word '$1'; see --help" ;;
  esac
  case "$1" in
    --out) out=$2 ;;
    --results) results=$2 ;;
    --seeds) seeds=$2 ;;
    --arms) arms=$2 ;;
    *) words+=("$1" "$2") ;;
  esac
  shift 2
done
if [[ $quick ]]; then
  out=${out:-runs/claim_quick} name=claim_quick nuisances=(N1 N2 N3) episodes=48 part=(--episodes_per_part 12)
else
  out=${out:-runs/claim} name=claim nuisances=(N1 N2 N3 N0 N6 N5 N4)
fi
results=${results:-$out/results}
[[ $seeds ]] && words+=(--seeds "$seeds")
[[ $arms ]] && words+=(--only_arms "$arms")

bash scripts/setup.sh
source .venv/bin/activate
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
trap 'echo "settle_claim.sh: interrupted; the same command goes on where it stopped" >&2; exit 130' INT TERM

words=(--config "configs/lam/settle_$name.yaml" --data "$out" --runs "$out/runs" --out "$results" "${words[@]}")
python scripts/settle_claim.py "${words[@]}" --only_check true # a wrong word is said now, not after an hour

# What each nuisance switches on.
declare -A switches=(
  [N0]="--random_cameras.is_fixed true" [N1]="" [N2]="--nuisances.camera_shake_m 0.02" [N3]="--nuisances.distractor true"
  [N4]="--nuisances.light 0.5" [N5]="--nuisances.overlay true" [N6]="--nuisances.shared_camera_shake_m 0.02"
)
for nuisance in "${nuisances[@]}"; do
  # Only the arms under N1, N2 and N3 need copies and late cameras; what happened is simulated once.
  views="random_1, random_2, random_3, random_4"
  case $nuisance in N1 | N2 | N3) views+=", copy_1, late_2" ;; esac
  groups="[{task: RandomMotion, episodes: $episodes, views: [$views], labelled: false}]"
  same=()
  [[ $nuisance == N1 ]] || same=(--recordings "$out/N1/episodes")
  # shellcheck disable=SC2086
  python scripts/collect_maniskill.py --config configs/episodes/claim.yaml --out "$out/$nuisance/episodes" \
    --groups "$groups" ${part[@]+"${part[@]}"} ${switches[$nuisance]} "${same[@]}"
  python scripts/cache_features.py --config configs/features/components.yaml --store "$out/$nuisance/episodes" \
    --out "$out/$nuisance/features"
done
python scripts/settle_claim.py "${words[@]}"
