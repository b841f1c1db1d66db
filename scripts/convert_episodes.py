"""Convert any source of episodes to a store: scripts/convert_episodes.py SOURCE OUT [--format auto] [--mapping FILE].

Interrupt it anywhere and type the same command: it goes on where it stopped.
"""

import argparse
from pathlib import Path

from core.config import ConfigError
from core.conversion import ConversionConfig, convert
from core.formats.by_name import READERS, read_mapping
from core.run import run_script
from core.splits import SplitRule
from core.video import CODECS


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder or file to read")
    parser.add_argument("out", type=Path, help="directory of the store")
    parser.add_argument("--format", choices=["auto", *READERS], help="container of the source (default: recognised)")
    parser.add_argument("--mapping", help="YAML file that says what the source calls things; see configs/data/")
    parser.add_argument("--instruction", help="said where the source has none")
    parser.add_argument("--control-hz", type=float, help="frames and actions a second, where the source does not say")
    parser.add_argument("--codec", choices=[*CODECS, "png"], default="h264", help="png: without loss (default: h264)")
    parser.add_argument("--held-out", type=float, default=0.1, metavar="SHARE", help="of the episodes (default: 0.1)")
    parser.add_argument("--keep-split", action="store_true", help="hold out what the source holds out")
    parser.add_argument("--seed", type=int, default=0, help="decides which episodes are held out (default: 0)")
    parser.add_argument("--skip-bad", action="store_true", help="leave out, and list, episodes that cannot be read")
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    try:
        changes = {"default_instruction": given.instruction, "control_hz": given.control_hz}
        mapping = read_mapping(given.mapping, format=given.format, **changes)
        split = None if given.keep_split else SplitRule(held_out=given.held_out, seed=given.seed)
        settings = {"workers": given.workers} if given.workers else {}
        config = ConversionConfig(
            source=given.source,
            out=given.out,
            mapping=mapping,
            split=split,
            codec=given.codec,
            skip_bad=given.skip_bad,
            **settings,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    convert(config)


if __name__ == "__main__":
    run_script(main)
