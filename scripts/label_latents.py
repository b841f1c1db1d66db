"""Give every transition of a store its latent action label.

python scripts/label_latents.py --config FILE [--key VALUE ...]
"""

from core.config import parse_command_line
from core.run import run_script
from lam.label import LabelConfig, label


def main() -> None:
    label(parse_command_line(LabelConfig, __doc__))


if __name__ == "__main__":
    run_script(main)
