"""Turn an evaluation into one page of HTML: scripts/report_evaluation.py --evaluation runs/quickstart/evaluate.

The page needs no network and no other file; --out names it (evaluation.html in the evaluation's directory).
"""

import argparse

from core.run import run_script, say
from eval.evaluation_page.page import write_evaluation_page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluation", required=True, help="directory with results.jsonl and, if recorded, videos")
    parser.add_argument("--out", help="file to write")
    words = parser.parse_args()
    say(f"report: {write_evaluation_page(words.evaluation, words.out)}")


if __name__ == "__main__":
    run_script(main)
