"""Make a folder of a policy that others can act with and fine-tune, with a model card; upload it where asked.

python scripts/export_policy.py --policy runs/mine/policy --out my_policy [--evaluation DIR] [--push OWNER/NAME]
"""

from pathlib import Path

from core.config import parse_command_line
from core.run import fingerprint_of_file, run_script
from eval.results import RESULTS_FILE, ResultsError, by_arm, by_task, read_results, summarise
from vla.checkpoint import WEIGHTS
from vla.export import ExportConfig, export


def main() -> None:
    config = parse_command_line(ExportConfig, __doc__, required_config=False)
    lines = table(config) if config.evaluation else []
    export(config, lines)


def table(config: ExportConfig) -> list[str]:
    """Success of this policy by task, with n and interval."""
    own = fingerprint_of_file(Path(config.policy) / WEIGHTS)
    found = [r for r in read_results(Path(config.evaluation) / RESULTS_FILE) if r.policy_fingerprint == own]
    lines = ["| arm | task | success at the end | 95 % | episodes |", "|---|---|---|---|---|"]
    for arm, results in by_arm(found).items():
        for task, group in by_task(results).items():
            one = summarise(group)
            low, high = one.wilson95
            lines.append(f"| {arm} | {task} | {one.success_at_end:.0%} | {low:.0%} to {high:.0%} | {one.episodes} |")
    if not found:
        raise ResultsError(
            f"{config.evaluation} has no episode of {config.policy} (fingerprint {own}); evaluate it first"
        )
    return lines


if __name__ == "__main__":
    run_script(main)
