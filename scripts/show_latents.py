"""Show what the codes of a latent action model mean, on one page of HTML.

python scripts/show_latents.py --config configs/lam/show.yaml --lam RUN --store STORE --features CACHE --out DIR
"""

from core.config import parse_command_line
from core.run import run_script
from lam.show.stage import ShowConfig, show


def main() -> None:
    show(parse_command_line(ShowConfig, __doc__))


if __name__ == "__main__":
    run_script(main)
