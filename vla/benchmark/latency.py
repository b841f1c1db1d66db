"""How long a policy takes to answer: each head, with a memory of what was read, without, and the published way."""

import tempfile
from collections.abc import Iterator
from copy import copy
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from core.benchmark.meters import process_clock
from core.benchmark.running import Numbers
from core.benchmark.timing import Timing, in_turn, ratio, ratio_row
from core.policy import Observation
from core.spaces import END_EFFECTOR_DELTA
from core.statistics import Statistics
from vla.backbones.interface import Backbone
from vla.benchmark.decoding import Published, Regenerating
from vla.benchmark.instructions import instructions
from vla.benchmark.sizes import SETTING, Sizes
from vla.checkpoint import VlaDescription, make_head, save
from vla.heads.fast import FastConfig, FastHead
from vla.heads.interface import Head, HeadSizes, TokenHead
from vla.images import ImageForm
from vla.model import VisionLanguageActionModel
from vla.parts import HEADS, Part
from vla.policy import VlaPolicy
from vla.tokens import only

SENSES, CONTROL_HZ, CHUNKS, TURNS = 9, 10.0, 512, 3
PUBLISHED = "published: generate, then l1_pool"
MILLI = 1e3


class Case(NamedTuple):
    """Policies of one head that differ in how they choose tokens."""

    kept: VlaPolicy
    """Ours."""
    again: VlaPolicy
    """Everything is read again for each token."""


def latency(sizes: Sizes, device: torch.device, numbers: Numbers) -> Iterator[str]:
    """A call of the policy by head: images in, a chunk of actions out, with a memory, without, and as published."""
    cases, published = policies(sizes)
    observation = observed(sizes)
    calls, repeats = {}, {}
    for name, case in cases.items():
        calls[name] = partial(case.kept.act, observation)
        repeats[name] = max(1, sizes.calls // 3) if words_of(case) else sizes.calls
        calls[f"{name}, all read again"] = partial(case.again.act, observation)
    calls[PUBLISHED], repeats[PUBLISHED] = partial(published.act, observation), sizes.calls
    timings = in_turn(calls, process_clock(device), TURNS, repeats)
    tokens = {name: words_of(case) for name, case in cases.items()}
    yield f"  chunks of {sizes.horizon} actions, {SETTING.num_tokens} latent tokens, one camera; milliseconds"
    yield f"  {'':40}{'p50':>9}{'p95':>9}{'p99':>9}{'calls':>7}{'words':>7}"
    for name, timing in timings.items():
        yield _row(name, timing, tokens.get(name, 0), numbers)
    for name in cases:
        yield ratio_row(
            f"{name}: all read again / kept", ratio(timings[f"{name}, all read again"], timings[name]), numbers
        )
    yield ratio_row(f"{PUBLISHED} / l1_pool", ratio(timings[PUBLISHED], timings["l1_pool"]), numbers)


def _row(name: str, timing: Timing, words: int, numbers: Numbers) -> str:
    found = {share: MILLI * timing.quantile_s(share / 100) for share in (50, 95, 99)}
    numbers.setdefault("milliseconds", {})[name] = found | {"calls": len(timing.calls), "words": words}
    return f"  {name:40}" + "".join(f"{ms:9.1f}" for ms in found.values()) + f"{len(timing.calls):7d}{words:7d}"


def words_of(case: Case) -> int:
    """Words of actions that the head's model writes in a call."""
    head = case.kept.model.head
    if isinstance(head, Dictated):
        return len(head.words)
    return head.horizon * head.dims if isinstance(head, TokenHead) else 0


def observed(sizes: Sizes) -> Observation:
    """What the robot senses."""
    return Observation(images={"front": sizes.images(1)[0, 0]}, proprioception=np.zeros(SENSES, np.float32))


def policies(sizes: Sizes) -> tuple[dict[str, Case], VlaPolicy]:
    """Of each head with random weights behind one backbone, and the published one, all ready to act."""
    with tempfile.TemporaryDirectory(prefix="benchmark_vla_") as folder:
        whole = VlaPolicy(_saved(sizes, Path(folder)))
    backbone, pool = whole.model.backbone, whole.model.head
    heads = {name: pool if name == "l1_pool" else _head(name, whole.description, backbone) for name in HEADS}
    kinds = (VisionLanguageActionModel, Regenerating)
    cases = {n: Case(*(with_model(whole, kind(backbone, head)) for kind in kinds)) for n, head in heads.items()}
    return cases, with_model(whole, Published(backbone, pool))


def with_model(policy: VlaPolicy, model: VisionLanguageActionModel) -> VlaPolicy:
    """The same policy but for its model; what it draws at random begins anew."""
    other = copy(policy)
    other.model = model.eval().to(policy.device)
    other.reset(instructions(1)[0], seed=0)
    return other


def _saved(sizes: Sizes, folder: Path) -> Path:
    values = np.random.default_rng(0).uniform(-1, 1, (CHUNKS, SENSES)).astype(np.float32)
    statistics = {"proprioception": Statistics.of([values])}
    statistics["actions"] = Statistics.of([values[:, : END_EFFECTOR_DELTA.dims]])
    description = VlaDescription(
        images=ImageForm(size=(sizes.frame_side, sizes.frame_side)),
        views=("front",),
        backbone=Part(name="timm_lm", options=sizes.options.model_dump()),
        setting=SETTING,
        head=Part(name="l1_pool"),
        horizon=sizes.horizon,
        action_dims=END_EFFECTOR_DELTA.dims,
        proprioception_dims=SENSES,
    )
    model = VisionLanguageActionModel(backbone := sizes.new_backbone(), make_head(description, backbone))
    facts = {
        "statistics": {name: found.to_json() for name, found in statistics.items()},
        "action_space": END_EFFECTOR_DELTA.model_dump(mode="json"),
        "control_hz": CONTROL_HZ,
    }
    save(folder, model, description, facts)
    return folder


def _head(name: str, description: VlaDescription, backbone: Backbone) -> Head | TokenHead:
    head = make_head(description.model_copy(update={"head": Part(name=name)}), backbone)
    if name == "fast":
        head = Dictated(description)
    if isinstance(head, TokenHead):
        head.fit(smooth_chunks(description))
        head.first_id = backbone.add_tokens(head.names)[0]
    return head


class Dictated(FastHead):
    """Writes the words of a given chunk, as many as those of a trained model; one with random weights would spell."""

    def __init__(self, description: VlaDescription) -> None:
        sizes = HeadSizes(0, 0, 0, description.horizon, description.action_dims, 0)
        super().__init__(FastConfig(), sizes)
        self.chunk = torch.from_numpy(smooth_chunks(description)[:1])

    @cached_property
    def words(self) -> list[int]:
        """Those of the chunk."""
        words = self.tokens(self.chunk, torch.ones(self.chunk.shape[:2], dtype=torch.bool))
        return words.ids[0, :-1].tolist()

    def legal(
        self, logits: Float[Tensor, "batch vocabulary"], written: Int[Tensor, "batch words"]
    ) -> Float[Tensor, "batch vocabulary"]:
        """The next word of the chunk alone, once what else is legal was found."""
        super().legal(logits, written)
        return only(logits, torch.tensor(self.words[written.shape[1] : written.shape[1] + 1]))


def smooth_chunks(description: VlaDescription) -> Float[np.ndarray, "chunks horizon dims"]:
    """Chunks of slow sines between -1 and 1."""
    draws = np.random.default_rng(0)
    steps = np.linspace(0, 1, description.horizon)[None, :, None]
    phase, rate = draws.uniform(-3, 3, (2, CHUNKS, 1, description.action_dims))
    return (0.9 * np.sin(phase + rate * steps)).astype(np.float32)
