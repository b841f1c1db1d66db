"""Turn a run's files into report.html and summary.json: scripts/report.py --run runs/quickstart."""

import argparse

from core.run import run_script, say
from eval.report import write_report


def main() -> None:
    parser = argparse.ArgumentParser(description="Write report.html and summary.json of a run.")
    parser.add_argument("--run", required=True, help="directory with the stages: episodes, lam, ..., evaluate")
    say(f"report: {write_report(parser.parse_args().run)}")


if __name__ == "__main__":
    run_script(main)
