"""Fine-tune a pretrained model to act, on labelled demonstrations.

python scripts/finetune_vla.py --config FILE [--key VALUE ...]
"""

from core.config import parse_command_line
from core.run import run_script
from vla.finetune import FinetuneVlaConfig, finetune


def main() -> None:
    finetune(parse_command_line(FinetuneVlaConfig, __doc__))


if __name__ == "__main__":
    run_script(main)
