"""Train a latent action model on cached features of action-free multi-view episodes.

python scripts/train_lam.py --config FILE [--key VALUE ...]
"""

from core.config import parse_command_line
from core.run import run_script
from lam.train import TrainLamConfig, train


def main() -> None:
    train(parse_command_line(TrainLamConfig, __doc__))


if __name__ == "__main__":
    run_script(main)
