"""A made-up evaluation as the tests of its page need it: lines, records and recordings of invented episodes."""

from dataclasses import replace

import numpy as np

from core.run import write_json
from eval.evaluation_page.evaluation import read_evaluation
from eval.protocol import Protocol
from eval.results import Result, append_result
from eval.simpler import TASKS as SIMPLER_TASKS
from eval.simpler_assets import NOT_OFFICIAL
from eval.video import write_video


def protocol_of(step_limit=60, execute_steps=4, assets="official"):
    benchmark = {"step_limit": step_limit, "control_hz": 5.0, "shader": "minimal", "assets": assets}
    return Protocol(benchmark=benchmark, policy={"execute_steps": execute_steps, "chunk_horizon": 8, "cameras": []})


def one(arm="policy", task="Push", seed=0, solved=True, protocol=None, **more):
    protocol = protocol or protocol_of()
    values = {"instruction": f"do {task}", "success_at_end": solved, "success_at_any_time": solved, "steps": 60}
    facts = {
        "seconds": 1.5 + seed / 10,
        "policy_fingerprint": f"of {arm}",
        "versions": {"python": "3.11", "numpy": "2"},
    }
    described = {"protocol": protocol, "protocol_fingerprint": protocol.fingerprint}
    return Result(arm=arm, task=task, seed=seed, **values | facts | described | more)


def write(path, results, planned=None, is_finished=True):
    """A directory as an evaluation leaves it."""
    path.mkdir(parents=True, exist_ok=True)
    for result in results:
        append_result(path / "results.jsonl", result)
    if planned is not None:
        arms = [{"name": arm, "tasks": [{"task": t, "episodes": n} for t, n in plan.items()]} for arm, plan in planned]
        record = {"config": {"arms": arms}, "key": "0123456789ab", "command": "scripts/evaluate.py --out x"}
        ended = {"fingerprint": "0123456789ab", "seconds": 90.0, "finished": "2025-01-01T00:00:00Z"}
        ended |= {"summary": {"workers": 2}}
        write_json(path / "stage.json", record)
        if is_finished:
            write_json(path / "manifest.json", record | ended)
    return path


def film(path, frames=12):
    pixels = np.full((frames, 64, 96, 3), 200, np.uint8)
    for number in range(frames):
        pixels[number, 20:40, 4 * number : 20 + 4 * number] = (190, 40, 40)
    write_video(path, pixels, 10.0)


def simpler_evaluation(path):
    """Two policies on SIMPLER's tasks with failures, an error, and recordings of every fourth episode."""
    random = np.random.default_rng(0)
    results = []
    for arm, chance in (("policy", 0.5), ("ablation <no labels>", 0.3)):
        for task in SIMPLER_TASKS:
            for seed in range(24):
                video = f"videos/{arm[:6]}_{task}_{seed}.mp4" if seed % 4 == 0 else None
                solved = bool(random.random() < chance)
                state = {"source": [*random.uniform(-0.2, 0.2, 2).tolist(), 0.9], "target": [0.1, seed % 3 / 10, 0.9]}
                told = {"first_success_step": int(random.integers(15, 60)) if solved else None, "initial_state": state}
                assets = protocol_of(assets=f"{NOT_OFFICIAL} (stand-ins: eggplant)")
                results.append(one(arm, task, seed, solved, assets, video=video, **told))
    results[5] = replace(results[5], error="RuntimeError: lost", success_at_end=False, success_at_any_time=False)
    for result in results:
        if result.video:
            film(path / result.video)
    plan = dict.fromkeys(SIMPLER_TASKS, 24)
    write(path, results, [("policy", plan), ("ablation <no labels>", plan)])
    return read_evaluation(path)
