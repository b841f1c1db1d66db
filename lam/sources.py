"""What a latent action model learns from: stores, each with its features, cameras, gap and share."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from pydantic import Field, field_validator

from core.config import Config
from core.frame_cache import FramesConfig
from core.frames import FeatureCache
from core.live_features import AugmentationConfig, LiveFeatures
from core.store import Store
from core.vision import EncoderConfig
from lam.dataset import DataOptions, TransitionDataset, TransitionsError
from lam.mixture import Mixture


class SourceConfig(Config):
    """One store to learn from."""

    store: str
    """Directory of episodes."""
    features: str = ""
    """Directory of its feature cache (scripts/cache_features.py); empty: the encoder runs at every step."""
    frames: FramesConfig = FramesConfig()
    """Without a feature cache: from where the encoder's frames are read."""
    weight: float = Field(default=1.0, gt=0)
    """Its share of the samples, relative to the other sources'."""
    views: tuple[str, ...] = ()
    """Cameras to learn from; empty: all of the store."""
    gap_s: float | tuple[float, float] | None = None
    """Seconds between the two frames of a transition, where they differ from the run's."""

    @field_validator("views")
    @classmethod
    def _each_once(cls, views: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(views)) != len(views):
            raise ValueError(f"views {list(views)} name a camera twice")
        return views


class DataConfig(Config):
    """What latent actions are learned from."""

    data: dict[str, SourceConfig]
    """The stores, by any name: --data.NAME.store, and .features, .views, .weight, .gap_s of each."""
    gap_s: float | tuple[float, float] = 0.4
    """Seconds between the two frames of a transition; of a range, each sample draws its own."""
    fewest_views: int = Field(default=2, ge=1)
    """Episodes that fewer cameras saw are left out; 1 takes all, and single views explain themselves only."""
    pairs_per_transition: int = Field(default=2, ge=0)
    """Own pairs, and pairs of two cameras, decoded of each transition; 0: all, whose cost grows with views squared."""
    pool: int = Field(default=1, ge=1)
    """Patches averaged along each side of the grid before they reach the model; 2 makes it four times cheaper."""
    encoder: EncoderConfig = EncoderConfig()
    """Visual tower of the sources that have no feature cache."""
    augment: Literal["none", "per_view", "shared"] = "none"
    """Augmentation of frames, the two of a view always alike: none, drawn for each view, or shared by the views."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """How far it goes."""


class Source(NamedTuple):
    """An opened `SourceConfig`."""

    store: Store
    features: FeatureCache | LiveFeatures
    views: tuple[str, ...]
    config: SourceConfig


def open_sources(config: DataConfig) -> dict[str, Source]:
    """The stores and their features.

    Raises:
        TransitionsError: none is given, features were made by different encoders, or cached frames are to be augmented.
    """
    if not config.data:
        raise TransitionsError("data is empty; give --data.NAME.store and --data.NAME.features")
    sources = {name: open_source(name, source, config) for name, source in config.data.items()}
    encoders = {name: source.features.encoder_fingerprint for name, source in sources.items()}
    if len(set(encoders.values())) != 1:
        raise TransitionsError(f"the sources' features come from different encoders: {encoders}; cache them with one")
    return sources


def open_source(name: str, source: SourceConfig, config: DataConfig) -> Source:
    """One store and its features."""
    store = Store.open(source.store)
    if source.features and config.augment != "none":
        raise TransitionsError(
            f"features in {source.features} are cached and cannot be augmented; leave features empty, or augment: none"
        )
    features = open_features(store, source.features, config.encoder, config.augmentation, source.frames)
    if unknown := set(source.views) - set(features.views):
        raise TransitionsError(
            f"data.{name}.views names {sorted(unknown)}; there are features of {list(features.views)}"
        )
    return Source(store, features, source.views or features.views, source)


def open_features(
    store: Store,
    directory: str,
    encoder: EncoderConfig,
    augmentation: AugmentationConfig = AugmentationConfig(),
    frames: FramesConfig = FramesConfig(),
) -> FeatureCache | LiveFeatures:
    """The cache in `directory`; without one, the encoder itself."""
    if directory:
        return FeatureCache.open(directory, store_fingerprint=store.fingerprint)
    return LiveFeatures(store, encoder, augmentation, frames)


def inputs_of(sources: Mapping[str, Source]) -> dict[str, str]:
    """Fingerprints of what a run learns from, by name."""
    return {
        f"{name}.{part}": fingerprint
        for name, source in sources.items()
        for part, fingerprint in (("store", source.store.fingerprint), ("features", source.features.fingerprint))
    }


def transitions(sources: Mapping[str, Source], config: DataConfig, split: str, options: DataOptions) -> Mixture:
    """The transitions of a split, with the numbers that `options` ask for."""
    options = options._replace(
        fewest_views=config.fewest_views,
        pairs=config.pairs_per_transition,
        pool=config.pool,
        augmentation=config.augment if split == "train" else "none",
    )
    datasets, first_camera = [], 0
    for source in sources.values():
        gap_s = config.gap_s if source.config.gap_s is None else source.config.gap_s
        options = options._replace(first_camera=first_camera)
        datasets.append(
            TransitionDataset(
                source.store, source.features, gap_s=gap_s, split=split, views=source.views, options=options
            )
        )
        first_camera += len(source.views)
    return Mixture(datasets, [source.config.weight for source in sources.values()])


def gap_of_all(config: DataConfig) -> float | tuple[float, float]:
    """The gap that all sources share, or the range that holds all of theirs."""
    gaps = {config.gap_s if source.gap_s is None else source.gap_s for source in config.data.values()}
    if len(gaps) == 1:
        return gaps.pop()
    ends = [gap if isinstance(gap, tuple) else (gap, gap) for gap in gaps]
    return min(start for start, _ in ends), max(end for _, end in ends)


def common_size(sources: Mapping[str, Source], kind: Literal["actions", "proprioception"]) -> int:
    """Numbers that an action or the proprioception has in all sources, 0 where none has any.

    Raises:
        TransitionsError: the sources differ.
    """
    sizes = {name: _size(source.store, kind) for name, source in sources.items()}
    if len(set(sizes.values())) != 1:
        raise TransitionsError(f"the sources' {kind} differ in size: {sizes}; train on one kind of robot at a time")
    return next(iter(sizes.values()))


def _size(store: Store, kind: str) -> int:
    if kind == "proprioception":
        return store.info.proprioception_dims
    return store.info.action_space.dims if store.info.action_space else 0
