"""Try policies in closed loop: scripts/evaluate.py --config configs/eval/quickstart.yaml --out runs/.../evaluate."""

from pathlib import Path

from core.config import parse_command_line
from core.run import Stage, read_manifest, run_script, say
from eval.plan import EvaluateConfig, jobs_of, policy_paths, setup_of
from eval.results import by_arm, summarise
from eval.runner import run


def fingerprint(path: Path) -> str:
    if not path.exists():  # perhaps on the hub; only then is torch needed here
        from vla.checkpoint import local

        path = local(path)
    return read_manifest(path)["fingerprint"]


def main() -> None:
    config = parse_command_line(EvaluateConfig, "Try policies in closed loop.")
    inputs = {name: fingerprint(path) for name, path in policy_paths(config).items()}
    stage = Stage.open(config.out, "evaluate", config, inputs)
    if stage.is_done:
        return
    setup = setup_of(config, make_policy="vla.policy:load_policy")
    try:
        results = run(jobs_of(config), setup, stage.path, config.workers, config.episode_timeout_s, config.attempts)
    finally:
        stage.keep_time()
    arms = {arm: summarise(group)._asdict() for arm, group in by_arm(results).items()}
    solved = {f"{arm}_success_at_end": summary["success_at_end"] for arm, summary in arms.items()}
    errors = sum(result.error is not None for result in results)
    if errors:
        say(f"evaluate: {errors} of {len(results)} episodes ended in an error and count as failures; see FAILED above")
    stage.finish({"episodes": len(results), "errors": errors, "workers": config.workers, **solved, "arms": arms})


if __name__ == "__main__":
    run_script(main)
