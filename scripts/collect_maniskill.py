"""Collect episodes of scripted experts: scripts/collect_maniskill.py --config configs/episodes/X.yaml --out DIR."""

from core.config import parse_command_line
from core.run import run_script
from eval.collection import collect
from eval.collection_settings import CollectionSettings


def main() -> None:
    collect(parse_command_line(CollectionSettings, "Collect simulated episodes of scripted experts."))


if __name__ == "__main__":
    run_script(main)
