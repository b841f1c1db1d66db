"""Recorded episodes through a policy: what it would have done beside what was done, before anyone moves a robot."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from pydantic import Field
from tqdm import tqdm

from core.config import Config
from core.policy import Observation, Policy
from core.run import say, write_json
from core.spaces import ActionSpace
from core.store import EpisodeRecord, Store

RESAMPLED = 1000
DRAWN_EPISODES = 3


class ReplayError(ValueError):
    """A policy and recordings that do not fit together."""


class ReplayConfig(Config):
    """A run of scripts/check_policy.py."""

    policy: str
    """Directory of the fine-tuned policy."""
    data: str
    """Directory of labelled episodes."""
    out: str
    """Directory of replay.json and replay.png."""
    episodes: int = Field(default=8, ge=1)
    """Episodes that are replayed: held-out ones, or all where none is held out; spread over them."""
    every: int = Field(default=0, ge=0)
    """Control steps from one question to the next; 0: as many as a chunk has."""


class Chunk(NamedTuple):
    """What the policy answered at one step."""

    start: int
    """Control step."""
    predicted: Float[np.ndarray, "horizon dims"]


class Replay(NamedTuple):
    """One episode."""

    name: str
    true: Float[np.ndarray, "steps dims"]
    """Recorded actions."""
    chunks: list[Chunk]

    def pairs(self) -> tuple[Float[np.ndarray, "n dims"], Float[np.ndarray, "n dims"]]:
        """Predicted and recorded actions at the same steps, up to the episode's end."""
        lengths = [min(len(chunk.predicted), len(self.true) - chunk.start) for chunk in self.chunks]
        predicted = [chunk.predicted[:length] for chunk, length in zip(self.chunks, lengths, strict=True)]
        true = [self.true[c.start : c.start + length] for c, length in zip(self.chunks, lengths, strict=True)]
        return np.concatenate(predicted), np.concatenate(true)


class DimensionError(NamedTuple):
    """How well one dimension of the action is predicted."""

    name: str
    nmse: float | None
    """Squared error as a share of the variance; 1: no better than always the mean. None: it never changes."""
    nmse_ci95: tuple[float, float] | None
    """Episodes resampled; None with one episode."""
    mean_error: float
    """Mean absolute error, in the unit of the dimension."""
    true_range: tuple[float, float]
    predicted_range: tuple[float, float]


def check(policy: Policy, store: Store, config: ReplayConfig) -> dict[str, Any]:
    """Replay, write replay.json and replay.png, say what is wrong; answers what replay.json holds.

    Raises:
        ReplayError: the recordings have other actions or cameras than the policy.
    """
    require_fit(policy, store)
    records = chosen(store, config.episodes, policy.cameras)
    replays = list(tqdm(replayed(policy, store, records, config.every), total=len(records), unit="episode"))
    space, units = policy.action_space, policy.action_space.units
    errors = errors_of(replays, space)
    warnings = warnings_of(errors)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    found = {
        "policy": config.policy,
        "policy_fingerprint": policy.fingerprint,
        "data": config.data,
        "store_fingerprint": store.fingerprint,
        "episodes": [replay.name for replay in replays],
        "split": sorted({record.split for record in records}),
        "steps": sum(len(replay.pairs()[0]) for replay in replays),
        "dimensions": [error._asdict() for error in errors],
        "warnings": warnings,
    }
    write_json(out / "replay.json", found)
    draw(out / "replay.png", replays[:DRAWN_EPISODES], errors, units)
    for error in errors:
        nmse = "never changes" if error.nmse is None else f"NMSE {error.nmse:.3f}"
        say(f"{error.name:12} {nmse}, mean error {error.mean_error:.4g}")
    for warning in warnings:
        say(f"warning: {warning}")
    say(f"check_policy: {out / 'replay.png'}")
    return found


def require_fit(policy: Policy, store: Store) -> None:
    """Refuse recordings that this policy cannot be compared with.

    Raises:
        ReplayError: the meaning of their actions is another, or a camera of the policy is missing.
    """
    ours, theirs = policy.action_space, store.info.action_space
    if theirs is None:
        raise ReplayError(f"{store.path} has no actions to compare with")
    for key in ("names", "units", "kind", "frame", "rotation"):
        if getattr(ours, key) != getattr(theirs, key):
            raise ReplayError(
                f"the policy's actions have {key} {getattr(ours, key)}, those of {store.path} {getattr(theirs, key)}"
            )
    hz = getattr(policy, "control_hz", store.info.control_hz)
    if abs(hz - store.info.control_hz) > 0.01 * hz:
        raise ReplayError(
            f"the policy was trained at {hz:g} Hz, {store.path} was recorded at {store.info.control_hz:g} Hz"
        )
    if missing := [camera for camera in policy.cameras if camera not in store.info.views]:
        raise ReplayError(
            f"the policy sees {list(policy.cameras)}; {store.path} lacks {missing}, it has {list(store.info.views)}"
        )


def chosen(store: Store, number: int, cameras: Sequence[str]) -> list[EpisodeRecord]:
    """Labelled held-out episodes that these cameras saw, or all where none is held out, spread evenly.

    Raises:
        ReplayError: there is none.
    """
    seen = [record for record in store.select(is_labelled=True) if set(cameras) <= set(record.views)]
    found = [record for record in seen if record.split == "held_out"]
    if seen and not found:
        say("warning: nothing is held out, so these are episodes that the policy may have been trained on")
    found = found or seen
    if not found:
        raise ReplayError(f"{store.path} has no labelled episode that the cameras {list(cameras)} saw")
    return [found[place] for place in np.unique(np.linspace(0, len(found) - 1, number).astype(int))]


def replayed(policy: Policy, store: Store, records: Sequence[EpisodeRecord], every: int) -> Iterator[Replay]:
    """Each episode, asked for a chunk every so many steps."""
    for record in records:
        policy.reset(record.instruction, seed=0)
        senses, true, chunks, start = store.proprioception(record.index), store.actions(record.index), [], 0
        while start < len(true):
            images = {view: store.frames(record.index, view, [start])[0] for view in policy.cameras}
            observation = Observation(images=images, proprioception=None if senses is None else senses[start])
            chunks.append(Chunk(start, policy.act(observation).actions))
            start += every or len(chunks[-1].predicted)
        yield Replay(record.episode_id, true, chunks)


def errors_of(replays: Sequence[Replay], space: ActionSpace) -> list[DimensionError]:
    """Of every dimension, over all episodes."""
    pairs = [replay.pairs() for replay in replays]
    predicted, true = (np.concatenate(side).astype(np.float64) for side in zip(*pairs, strict=True))
    middle = true.mean(0)
    squares = np.array([((p - t) ** 2).sum(0) for p, t in pairs], np.float64)
    spread = np.array([((t - middle) ** 2).sum(0) for _, t in pairs], np.float64)
    draws = np.random.default_rng(0).integers(len(pairs), size=(RESAMPLED, len(pairs)))
    moves: Bool[np.ndarray, " dims"] = np.ptp(true, axis=0) > 0
    found = []
    for d, name in enumerate(space.names):
        nmse = interval = None
        if moves[d]:
            nmse = float(squares[:, d].sum() / spread[:, d].sum())
            shares = squares[draws, d].sum(1) / np.maximum(spread[draws, d].sum(1), 1e-12)
            interval = (
                None if len(pairs) < 2 else (float(np.quantile(shares, 0.025)), float(np.quantile(shares, 0.975)))
            )
        ranges = [(float(values[:, d].min()), float(values[:, d].max())) for values in (true, predicted)]
        found.append(DimensionError(name, nmse, interval, float(np.abs(predicted - true)[:, d].mean()), *ranges))
    return found


def warnings_of(errors: Sequence[DimensionError]) -> list[str]:
    """What should be looked at before a robot is moved."""
    said = []
    for error in errors:
        true, predicted = (high - low for low, high in (error.true_range, error.predicted_range))
        if error.nmse is not None and error.nmse >= 1:
            said.append(f"{error.name}: NMSE {error.nmse:.2f}, worse than always answering the mean")
        elif error.nmse is not None and predicted < 0.2 * true:
            said.append(f"{error.name}: predictions span {predicted:.3g}, recordings {true:.3g}; it hardly moves")
        elif predicted > 2 * true and predicted > 0:
            said.append(f"{error.name}: predictions span {predicted:.3g}, recordings only {true:.3g}")
    return said


def draw(path: Path, replays: Sequence[Replay], errors: Sequence[DimensionError], units: Sequence[str]) -> None:
    """Recorded actions as lines, predicted chunks over them, a row a dimension and a column an episode."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (4.2 * len(replays), 1.5 * len(errors) + 0.6)
    figure, grid = plt.subplots(len(errors), len(replays), figsize=size, squeeze=False, sharex="col", sharey="row")
    for column, replay in zip(grid.T, replays, strict=True):
        column[0].set_title(replay.name, fontsize=9)
        column[-1].set_xlabel("control step")
        for d, axes in enumerate(column):
            axes.plot(replay.true[:, d], color="black", linewidth=1.2, label="recorded")
            for number, chunk in enumerate(replay.chunks):
                steps = np.arange(chunk.start, chunk.start + len(chunk.predicted))
                told = {"label": "predicted chunks"} if number == 0 else {}
                axes.plot(steps, chunk.predicted[:, d], color="#d9731a", linewidth=1.4, alpha=0.8, **told)
    for axes, error, unit in zip(grid[:, 0], errors, units, strict=True):
        nmse = "constant" if error.nmse is None else f"NMSE {error.nmse:.2f}"
        axes.set_ylabel(f"{error.name} [{unit}]\n{nmse}", fontsize=8)
    grid[0, 0].legend(fontsize=7, loc="upper right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
