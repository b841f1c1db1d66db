# What eval_simpler.sh and eval_maniskill.sh share; sourced with `benchmark` (its configuration, its place in runs) set. Takes
# the words of the command line, prepares the machine, and gives `evaluate`.
set -euo pipefail
fail() { echo "$(basename "$0"): $*; see --help" >&2; exit 2; }
checkpoint= out=runs/$benchmark names=()
while (($#)); do
  case "$1" in
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "scripts/$(basename "$0")"; exit 0 ;;
    --expert | --random) names+=("${1#--}"); shift ;;
    --out) [[ $# -ge 2 ]] || fail "--out needs a value"; out=$2; shift 2 ;;
    --) shift; break ;;
    -*) fail "unknown word '$1' (settings of the evaluation go behind --)" ;;
    *) [[ ! $checkpoint ]] || fail "one CHECKPOINT, not '$checkpoint' and '$1'"; checkpoint=$1; shift ;;
  esac
done
[[ $checkpoint || ${names[*]} ]] || fail "a CHECKPOINT, --expert or --random is needed"
# What is no directory may be OWNER/NAME, on the hub.
[[ ! $checkpoint || -d $checkpoint || ( $checkpoint =~ ^[^/.]+/[^/]+$ && ! -d ${checkpoint%/*} ) ]] ||
  fail "there is no directory $checkpoint"

bash scripts/setup.sh
source .venv/bin/activate
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

# evaluate [--key value ...]: every arm on every task of the configuration, then a page, after Ctrl-C too; results.jsonl in $out.
evaluate() {
  local tasks arms= name ended=0
  tasks=$(python -c 'import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))["arms"][0]["tasks"]))' \
    "configs/eval/$benchmark.yaml")
  [[ ! $checkpoint ]] || arms="{name: policy, policy: ., tasks: $tasks}"
  for name in ${names[@]+"${names[@]}"}; do arms+="${arms:+, }{name: $name, policy: $name, tasks: $tasks}"; done
  python scripts/evaluate.py --config "configs/eval/$benchmark.yaml" --policies "${checkpoint:-.}" --arms "[$arms]" --out "$out" "$@" || ended=$?
  if [[ $ended == 0 || ( $ended == 130 && -s $out/results.jsonl ) ]]; then python scripts/report_evaluation.py --evaluation "$out"; fi
  return "$ended"
}
