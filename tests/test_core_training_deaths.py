"""A process that dies ends the whole training, soon and with its name. Started by a launcher, this file trains."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_core_training import Line, Model, config

from core.run import run_script
from core.training import TrainingError, fit, make_accelerator, open_stage

ROOT = Path(__file__).resolve().parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
ACCELERATE += ["--config_file", str(ROOT / "configs/accelerate/zero2.yaml")]
SOON_S = 60


def die(how: str) -> None:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "refused":
        raise TrainingError("this sample is unheard of")
    raise KeyError("no such camera")


def main() -> None:
    """Process 1 dies before its third step; process 0 waits for its gradients."""
    out, how = Path(sys.argv[1]), sys.argv[2]
    settings = config(steps=1000, batch_size=4)
    accelerator = make_accelerator(settings, out)
    stage = open_stage(accelerator, out, "line", settings, {})

    def after_step(step: int) -> dict:
        if step == 2 and os.environ["RANK"] == "1":
            (out / "died").write_text(json.dumps(time.time()))
            die(how)
        return {}

    fit(Model(), Line(), settings, stage, accelerator, after_step=after_step)


def died(launcher: list[str], out: Path, how: str) -> str:
    """What such a training says."""
    done = subprocess.run(
        [*launcher, __file__, str(out), how],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode not in (0, None)
    assert time.time() - json.loads((out / "died").read_text()) < SOON_S
    assert not (out / "manifest.json").exists()
    return done.stderr


def last_words(said: str, exitcode: int) -> str:
    """What the launcher tells in the end of process 1, which failed first."""
    found = re.search(rf"rank +: 1 \(local_rank: 1\)\n +exitcode +: {exitcode} .*?(\n[-=]+\n|$)", said, re.DOTALL)
    assert found, said
    return found[0]


def test_a_refusal_by_one_process_ends_all_with_its_sentence_and_its_place(tmp_path):
    said = died(TORCHRUN, tmp_path / "run", "refused")
    assert f"{Path(__file__).name}: rank 1 of 2: TrainingError: this sample is unheard of\n" in said
    assert 'raise TrainingError("this sample is unheard of")' in last_words(said, 1)


def test_a_killed_process_ends_all_with_its_number(tmp_path):
    assert "SIGKILL" in last_words(died(TORCHRUN, tmp_path / "run", "killed"), -9)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_a_mistake_of_the_programmer_in_one_process_ends_all_with_its_traceback(tmp_path, launcher):
    said = died(launcher, tmp_path / "run", "wrong")
    assert "[rank1]: KeyError: 'no such camera'\n" in said
    assert "KeyError: 'no such camera'" in last_words(said, 1)


if __name__ == "__main__":
    run_script(main)
