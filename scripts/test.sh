#!/usr/bin/env bash
# Set up and run the tests, two at a time; arguments go to pytest, e.g. scripts/test.sh -m slow. The last line is pytest's
# summary.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
