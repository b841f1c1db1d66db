"""Encode every frame of a store once, so that training reads features: scripts/cache_features.py --config FILE."""

from core.config import Config, parse_command_line
from core.frames import FeatureCache
from core.run import run_script
from core.store import Store
from core.vision import EncoderConfig


class CacheFeaturesConfig(Config):
    """A run of scripts/cache_features.py."""

    store: str
    """Directory of episodes."""
    out: str
    """Directory of the features; about 50 kB a frame and view with the default tower."""
    encoder: EncoderConfig = EncoderConfig()
    """Visual tower."""
    views: tuple[str, ...] = ()
    """Cameras to encode; empty: all of the store."""
    pool: int = 1
    """Patches averaged along each side of the grid before they are stored; 2 makes the files four times smaller."""
    components: int = 0
    """Principal components of all patches together that are stored instead of the patches; 0: the patches."""
    workers: int = 1
    """Processes that encode, with one thread each; 1: this process, with every thread (right for a GPU)."""


def main() -> None:
    config = parse_command_line(CacheFeaturesConfig, "Encode every frame of a store once.")
    views = config.views or None
    FeatureCache.build(
        Store.open(config.store), config.encoder, config.out, config.workers, views, config.pool, config.components
    )


if __name__ == "__main__":
    run_script(main)
