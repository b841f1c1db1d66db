"""Is one policy better? scripts/compare_results.py A B [C ...], paired by task and seed, A against each other one.

Each is a results.jsonl, the directory of an evaluation, or either with the arm behind a colon:
runs/quickstart/evaluate:latent_pretrained. Results under different conditions are refused. The last line is JSON.
"""

import argparse
import json

from core.run import run_script
from eval.pairing import PLANNED_DIFFERENCE, compare_arms, read_arm
from eval.pairing_words import as_json, lines_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", metavar="A", help="results of the policy that the others are subtracted from")
    parser.add_argument("others", metavar="B", nargs="+", help="results of another policy")
    parser.add_argument(
        "--difference",
        type=float,
        default=PLANNED_DIFFERENCE,
        help="difference of success rates to say the needed number of episodes for (default 0.1: 10 points)",
    )
    words = parser.parse_args()
    arms = [read_arm(source) for source in (words.first, *words.others)]
    comparisons = compare_arms(arms[0], arms[1:], words.difference)
    for comparison in comparisons:
        print("\n".join(lines_of(comparison)), end="\n\n")
    print(json.dumps({"success": "at_end", "comparisons": [as_json(comparison) for comparison in comparisons]}))


if __name__ == "__main__":
    run_script(main)
