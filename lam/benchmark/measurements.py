"""The measurements, each a function that yields the lines of its table and keeps its numbers."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from core.benchmark.arithmetic import operations, peak_rate
from core.benchmark.meters import wall_clock
from core.benchmark.running import Numbers
from core.benchmark.timing import Timing, in_turn, rows
from core.device import bf16_is_fast
from core.vision import EncoderConfig, VisualEncoder, load_encoder
from lam.benchmark.memory import FEWER_BLOCKS, PAIRS, memory_of_step
from lam.benchmark.our_step import OurStep, batch_of, changed
from lam.benchmark.profile_by_kind import seconds_by_kind
from lam.benchmark.published_step import PublishedModel, PublishedStep
from lam.benchmark.sizes import Sizes
from lam.model import LatentActionModel

Measurement = Callable[[Sizes, torch.device, Numbers], Iterator[str]]
VIEWS = 2
VIEW_COUNTS = (1, 2, 3, 4, 6)
GIGA = 1e9


def against_published(sizes: Sizes, device: torch.device, numbers: Numbers) -> Iterator[str]:
    """The training step against the published one, as fast as each precision allows and at equal precision."""
    features = sizes.features(VIEWS, sizes.batch, device)
    fast = bf16_is_fast(device)
    calls: dict[str, Callable[[], Any]] = {}
    published = PublishedStep(PublishedModel(sizes.model, sizes.feature_dim).to(device), features, False)
    ours = OurStep(sizes.new_model().to(device), batch_of(features, pairs=0), False)
    for name, bf16 in (("float32", False), ("bf16", True)) if fast else (("float32", False),):
        calls[f"published, {name}"] = changed(published, bf16=bf16)
        calls[f"ours, {name}"] = changed(ours, bf16=bf16)
    calls["ours, one own and one cross pair"] = changed(ours, bf16=fast, batch=batch_of(features, pairs=1))
    timings = in_turn(calls, wall_clock(device), sizes.rounds)
    yield from rows(timings, numbers)
    rates = {dtype: _peak_rate(sizes, device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    default = "bf16" if fast else "float32"
    ratios = {
        "published float32 / ours in the default precision": ("published, float32", f"ours, {default}"),
        "the same with one own and one cross pair": ("published, float32", "ours, one own and one cross pair"),
        "published / ours, both float32": ("published, float32", "ours, float32"),
        "published / ours, both in the default precision": (f"published, {default}", f"ours, {default}"),
    }
    for name, (above, below) in ratios.items():
        yield _ratio(name, timings[above].median_s / timings[below].median_s, numbers)
    yield _ratio("peak of bf16 / peak of float32", rates[torch.bfloat16] / rates[torch.float32], numbers)


def against_live_features(sizes: Sizes, device: torch.device, numbers: Numbers) -> Iterator[str]:
    """The step on cached features against the step that first encodes its frames with the frozen tower."""
    tower = load_encoder(sizes.tower, device)
    step = OurStep(sizes.new_model().to(device), batch_of(sizes.features(VIEWS, 1, device), 0), bf16_is_fast(device))
    number = len(step.batch["features"])
    images = _images(2 * number, sizes.tower.image_size, device)

    def encode_and_step() -> None:
        step.batch["features"] = tower(images).unflatten(0, (number, 2))
        step()

    calls: dict[str, Callable[[], Any]] = {"features from a cache": step, "features on the fly": encode_and_step}
    timings = in_turn(calls, wall_clock(device), sizes.rounds)
    yield from rows(timings, numbers)
    yield _ratio("on the fly / cached", _quotient(timings, "features on the fly", "features from a cache"), numbers)


def share_of_peak(sizes: Sizes, device: torch.device, numbers: Numbers) -> Iterator[str]:
    """Operations a second of our step as a share of the machine's best, and where the time goes."""
    bf16 = bf16_is_fast(device)
    step = OurStep(sizes.new_model().to(device), batch_of(sizes.features(VIEWS, sizes.batch, device), 0), bf16)
    count = operations(step.gradients)
    step.update()
    peaks: list[float] = []

    def peak() -> None:
        peaks.append(_peak_rate(sizes, device, torch.bfloat16 if bf16 else torch.float32))

    def gradients() -> None:
        step.gradients()
        step.optimizer.zero_grad()

    calls: dict[str, Callable[[], Any]] = {"forward and backward": gradients, "whole step": step, "peak": peak}
    timings = in_turn(calls, wall_clock(device), sizes.rounds)
    yield from rows({name: t for name, t in timings.items() if name != "peak"}, numbers)
    best = max(peaks)
    features = sizes.features(VIEWS, sizes.batch, device)
    published = operations(PublishedStep(PublishedModel(sizes.model, sizes.feature_dim).to(device), features, False))
    numbers |= {"operations": count, "published operations": published, "peak operations a second": best}
    yield f"  {count / GIGA:.1f} G operations a step; best rate {best / GIGA:.0f} G operations a second"
    yield f"  {published / GIGA:.1f} G operations a published step, {published / count:.2f} times as many"
    for name in ("forward and backward", "whole step"):
        yield _ratio(f"share of the best rate, {name}", count / timings[name].median_s / best, numbers)
    kinds = seconds_by_kind(step, device)
    total = sum(kinds.values())
    numbers["seconds by kind"] = kinds
    yield from (f"  {kind:48} {seconds:9.4f} s  {seconds / total:6.1%}" for kind, seconds in kinds.items())


def labelling(sizes: Sizes, device: torch.device, numbers: Numbers) -> Iterator[str]:
    """Labels of cached features in batches against one transition at a time, as far as the published data loader."""
    yield "  the paper's network"
    yield from _labelling_of_paper(sizes, device, numbers)
    yield "  the quickstart's network"
    yield from _labelling_of_quickstart(sizes, device, numbers)


def _labelling_of_quickstart(sizes: Sizes, device: torch.device, numbers: Numbers) -> Iterator[str]:
    torch.manual_seed(0)
    model = LatentActionModel(sizes.quick_model, sizes.quick_dim, sizes.quick_patches).to(device).eval()
    features = torch.randn(sizes.quick_batch, 2, sizes.quick_patches, sizes.quick_dim).to(device)
    fast, some = bf16_is_fast(device), max(1, sizes.quick_batch // 4)
    calls = {
        "quickstart, one at a time": lambda: _label(model, features[:some], 1, fast),
        "quickstart, in batches": lambda: _label(model, features, sizes.quick_batch, fast),
    }
    counts = {"quickstart, one at a time": some, "quickstart, in batches": sizes.quick_batch}
    timings = _per_transition(in_turn(calls, wall_clock(device), sizes.rounds), counts)
    yield from rows(timings, numbers)
    yield _ratio("quickstart, one at a time / in batches", _quotient(timings, *calls), numbers)


def _labelling_of_paper(sizes: Sizes, device: torch.device, numbers: Numbers) -> Iterator[str]:
    model = sizes.new_model().to(device).eval()
    features = sizes.features(1, sizes.labelled, device)[0]
    tower = load_encoder(EncoderConfig(**(sizes.tower.model_dump() | {"dtype": "float32"})), device)
    images = _images(2, sizes.tower.image_size, device)
    fast = bf16_is_fast(device)
    some = max(1, sizes.labelled // 4)
    calls = {
        "one at a time, tower and float32": lambda: _label_frames(model, tower, images, some),
        "one at a time, float32": lambda: _label(model, features[:some], 1, False),
        "one at a time, default precision": lambda: _label(model, features[:some], 1, fast),
        "in batches, default precision": lambda: _label(model, features, sizes.label_batch, fast),
    }
    counts = dict.fromkeys(calls, some) | {"in batches, default precision": sizes.labelled}
    timings = _per_transition(in_turn(calls, wall_clock(device), sizes.rounds), counts)
    yield f"  seconds a transition; batches of {sizes.label_batch}"
    yield from rows(timings, numbers)
    for name in list(calls)[:-1]:
        yield _ratio(f"{name} / in batches", _quotient(timings, name, "in batches, default precision"), numbers)


def cost_of_views(sizes: Sizes, device: torch.device, numbers: Numbers) -> Iterator[str]:
    """Seconds and memory of forward and backward against the number of views, with pairs sampled and with all."""
    model = sizes.new_model(encoder_blocks=FEWER_BLOCKS, decoder_blocks=FEWER_BLOCKS).to(device)
    bf16 = bf16_is_fast(device)

    def gradients(views: int, pairs: int) -> Callable[[], Any]:
        step = OurStep(model, batch_of(sizes.features(views, 1, device), pairs), bf16)
        return lambda: (step.gradients(), step.optimizer.zero_grad())

    kinds = {(name, v): pairs for name, pairs in PAIRS.items() for v in VIEW_COUNTS}
    calls = {f"{name}, V = {v}": gradients(v, pairs) for (name, v), pairs in kinds.items()}
    timings = in_turn(calls, wall_clock(device), sizes.rounds - 1)
    yield f"  one transition; {FEWER_BLOCKS} + {FEWER_BLOCKS} blocks"
    numbers["memory in bytes"] = {}
    for line, name in zip(rows(timings, numbers), timings, strict=True):
        pairs, views = name.split(", V = ")
        size = {is_on: memory_of_step(sizes, device, int(views), pairs, is_on) for is_on in (False, True)}
        numbers["memory in bytes"][name] = {"kept": size[False], "checkpointed": size[True]}
        yield f"{line}  {size[False] / GIGA:6.2f} GB, checkpointed {size[True] / GIGA:6.2f} GB"


MEASUREMENTS: dict[int, Measurement] = {
    1: against_published,
    2: against_live_features,
    3: share_of_peak,
    4: labelling,
    5: cost_of_views,
}


@torch.inference_mode()
def _label(model: LatentActionModel, features: Tensor, together: int, bf16: bool) -> None:
    with torch.autocast(features.device.type, torch.bfloat16, enabled=bf16):
        for chunk in features.split(together):
            model.label(chunk)


@torch.inference_mode()
def _label_frames(model: LatentActionModel, tower: VisualEncoder, images: Tensor, number: int) -> None:
    for _ in range(number):
        model.label(tower(images)[None])


def _images(number: int, side: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (number, side, side, 3), dtype=torch.uint8, generator=generator).to(device)


def _per_transition(timings: dict[str, Timing], counts: dict[str, int]) -> dict[str, Timing]:
    return {name: timing.per(counts[name]) for name, timing in timings.items()}


def _peak_rate(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> float:
    tokens, width = sizes.batch * VIEWS**2 * sizes.patches, sizes.model.width
    return peak_rate(wall_clock(device), device, dtype, tokens, width, 4 * width)


def _ratio(name: str, value: float, numbers: Numbers) -> str:
    numbers[name] = value
    return f"  {name:56} {value:9.2f}"


def _quotient(timings: dict[str, Timing], above: str, below: str) -> float:
    return timings[above].median_s / timings[below].median_s
