"""Pretrain a vision-language-action model on latent labels.

python scripts/pretrain_vla.py --config FILE [--key VALUE ...]
"""

from core.config import parse_command_line
from core.run import run_script
from vla.pretrain import PretrainVlaConfig, pretrain


def main() -> None:
    pretrain(parse_command_line(PretrainVlaConfig, __doc__))


if __name__ == "__main__":
    run_script(main)
