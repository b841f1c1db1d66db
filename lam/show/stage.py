"""The stage that shows what the codes of one latent action model mean: one page of HTML that needs no other file."""

from typing import Any

import numpy as np
from tqdm import tqdm

from core.config import Config
from core.drawing import require_drawing
from core.run import Stage, read_manifest, write_text
from core.store import Store
from lam.checkpoint import LamFacts, load_lam
from lam.dataset import DataOptions, FeatureSource, TransitionDataset
from lam.model import LatentActionModel
from lam.show.agreement import CameraPair, agreement_of_pairs, entropy_bits
from lam.show.findings import agreement_problems, codebook_problems, moved_by_camera, transplant_problems
from lam.show.history import perplexity, read_history
from lam.show.meanings import Meaning, direction_of, distances_of, meanings_of_token, meanings_of_tuples
from lam.show.nearest import principal_plane
from lam.show.pictures import Pictures
from lam.show.sample import Clips, Motion, ShowError, motion_of, take_clips
from lam.show.template import render
from lam.show.transplant import Transplant, transplants
from lam.sources import open_features

PAGE = "page.html"
SPLIT = "held_out"


class ShowConfig(Config):
    """A run of scripts/show_latents.py."""

    out: str
    """Directory of the page."""
    lam: str
    """Run directory of the latent action model."""
    store: str
    """Directory of episodes; the held-out ones are shown."""
    features: str = ""
    """Directory of the store's feature cache, made with the model's encoder; empty: that encoder runs now (slow)."""
    views: tuple[str, ...] = ()
    """Cameras to show; empty: all of the store."""
    gap_s: float | None = None
    """Seconds between the two frames; needed where the model was trained on a range of gaps."""
    transitions: int = 1000
    """Held-out transitions to look at, at most."""
    codes: int = 16
    """Codes to show of each token, those in most episodes."""
    tuples: int = 12
    """Tuples of codes to show, those in most episodes."""
    examples: int = 4
    """Clips to show of each."""
    transplants: int = 8
    """Transplants to show."""
    gallery: int = 1200
    """Frames of each camera, about, among which the nearest to a transplant is looked for."""
    seed: int = 0
    """Which transitions and transplants."""


def show(config: ShowConfig) -> None:
    """Run the stage: write page.html.

    Raises:
        ShowError: model, episodes and features do not fit together, or the page cannot be drawn.
    """
    require_drawing()
    model, facts = load_lam(config.lam)
    store = Store.open(config.store)
    source = open_features(store, config.features, facts.encoder)
    if source.encoder_fingerprint != facts.encoder_fingerprint:
        raise ShowError(
            f"features in {config.features or 'memory'} come from encoder {source.encoder_fingerprint}, the latent "
            f"action model from {facts.encoder_fingerprint}; cache them again with the model's encoder: {facts.encoder}"
        )
    dataset = held_out(config, store, source, model, facts)
    inputs = {"lam": facts.fingerprint, "store": store.fingerprint, "features": source.fingerprint}
    stage = Stage.open(config.out, "show_latents", config, inputs)
    if stage.is_done:
        return
    clips = take_clips(model, dataset, config.transitions, config.seed)
    values, summary = page_values(config, model, store, clips)
    write_text(stage.path / PAGE, render(values))
    stage.finish(summary)


def held_out(
    config: ShowConfig, store: Store, source: FeatureSource, model: LatentActionModel, facts: LamFacts
) -> TransitionDataset:
    """The transitions of held-out episodes, as the model takes them.

    Raises:
        ShowError: no episode was held out, or features have another size than the model's.
    """
    if not store.select(split=SPLIT):
        raise ShowError(f"{store.path} has no {SPLIT} episodes, and training episodes would flatter the model")
    gap_s, views = facts.one_gap_s(config.gap_s), config.views or tuple(store.info.views)
    options = DataOptions(pool=facts.pool)
    dataset = TransitionDataset(store, source, gap_s=gap_s, split=SPLIT, views=views, options=options)
    sizes = (dataset.num_patches, source.dim)
    if sizes != (model.patches, model.feature_dim):
        raise ShowError(
            f"features of {sizes[0]} patches x {sizes[1]} channels (pooled by {facts.pool}), but the latent action "
            f"model takes {model.patches} x {model.feature_dim}; cache them as those that it was trained on"
        )
    return dataset


def page_values(
    config: ShowConfig, model: LatentActionModel, store: Store, clips: Clips
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the template shows, and what the manifest says."""
    pictures = Pictures(store, clips)
    motion = motion_of(store, clips)
    moved, searched = transplants(model, clips, config.gallery, config.seed)
    cameras = [int(clips.cameras[one.donor]) for one in moved]
    rows = moved_by_camera(moved, cameras, clips.dataset.views)
    coded = code_values(config, model, clips, None if isinstance(motion, str) else motion, pictures)
    problems = [*coded.pop("problems"), *transplant_problems(rows)]
    values = {
        "lam": config.lam,
        "manifest": read_manifest(config.lam),
        "model": model.config,
        "seconds": clips.gap / store.info.control_hz,
        "store": config.store,
        "clips": len(clips.cameras),
        "transitions": len(np.unique(clips.transitions)),
        "of_transitions": len(clips.dataset),
        "episodes": len(np.unique(clips.episodes)),
        "views": clips.dataset.views,
        "by_view": np.bincount(clips.cameras, minlength=len(clips.dataset.views)).tolist(),
        "problems": problems,
        "motion": motion,
        **training_facts(config),
        "charts": charts(config, clips, motion),
        "moved": rows,
        "searched": searched,
        "transplants": [shown_transplant(one, clips, pictures) for one in moved[: config.transplants]],
        "transplants_in_all": len(moved),
    }
    kappas = [one.kappa for pair in coded["pairs"] for one in pair.tokens if np.isfinite(one.kappa)]
    summary = {
        "clips": values["clips"],
        "transitions": values["transitions"],
        "episodes": values["episodes"],
        "problems": len(problems),
    } | ({"mean_kappa": float(np.mean(kappas))} if kappas else {})
    return values | coded, summary


def code_values(
    config: ShowConfig, model: LatentActionModel, clips: Clips, motion: Motion | None, pictures: Pictures
) -> dict[str, Any]:
    """The parts that need codes; all empty where the bottleneck is continuous."""
    empty = {
        "num_codes": None,
        "max_bits": 0.0,
        "tokens": [],
        "tuples": [],
        "tuples_left": 0,
        "pairs": [],
        "all_clips": None,
    }
    if clips.indices is None:
        return empty | {"problems": []}
    num_codes = model.bottleneck.num_codes
    distances = distances_of(clips, model.config.bottleneck)
    found, left = meanings_of_tuples(clips, distances, motion, config.tuples, config.examples)
    counts = np.stack([np.bincount(column, minlength=num_codes) for column in clips.indices.T])
    used, effective = (counts > 0).sum(1), perplexity(counts)
    tokens = []
    for token in range(len(counts)):
        codes, codes_left = meanings_of_token(clips, distances, token, motion, config.codes, config.examples)
        numbers = {"used": int(used[token]), "perplexity": float(effective[token]), "left": codes_left}
        tokens.append(
            numbers | {"bits": entropy_bits(counts[token]), "codes": shown(codes, pictures, f"token {token}")}
        )
    names = clips.dataset.views
    pairs: list[CameraPair] = list(
        agreement_of_pairs(clips.indices, clips.transitions, clips.cameras, clips.episodes, names)
    )
    problems = codebook_problems(effective, used.tolist(), num_codes, len(clips.cameras)) + agreement_problems(pairs)
    return {
        "num_codes": num_codes,
        "max_bits": float(np.log2(num_codes)),
        "tokens": tokens,
        "tuples": shown(found, pictures, "tuples"),
        "tuples_left": left,
        "pairs": pairs,
        "all_clips": None if motion is None else direction_of(motion, np.arange(len(clips.cameras))),
        "problems": problems,
    }


def shown(found: list[Meaning], pictures: Pictures, what: str) -> list[dict[str, Any]]:
    """Meanings with the pictures of their examples."""
    bar = tqdm(found, desc=f"show_latents: pictures of {what}", unit="row", mininterval=1.0, leave=False)
    return [{"meaning": one, "examples": [pictures.clip(int(row)) for row in one.examples]} for one in bar]


def shown_transplant(one: Transplant, clips: Clips, pictures: Pictures) -> dict[str, Any]:
    """A transplant with its pictures."""
    episode, frame = one.nearest
    receiver = int(clips.episodes[one.receiver])
    steps = frame - int(clips.frames[one.receiver])
    return {
        "it": one,
        "donor": pictures.clip(one.donor),
        "receiver": pictures.first(one.receiver),
        "nearest": pictures.frame(episode, int(clips.cameras[one.receiver]), frame),
        "where": f"the same episode, {abs(steps)} frames {'later' if steps > 0 else 'earlier'}"
        if episode == receiver
        else "another episode",
    }


def training_facts(config: ShowConfig) -> dict[str, int]:
    """How many numbers the drawings of the codebook rest on."""
    history, final = read_history(config.lam), final_counts(config)
    return {
        "checks": 0 if history is None else len(history.steps),
        "revived": 0 if history is None else int(np.nansum(history.revived)),
        "final_n": 0 if final is None else int(final[0].sum()),
    }


def final_counts(config: ShowConfig) -> np.ndarray | None:
    """How often each code was used on held-out episodes at the end of the training, by token."""
    counts = read_manifest(config.lam)["summary"].get("code_histogram")
    return np.array(counts) if counts else None


def charts(config: ShowConfig, clips: Clips, motion: Motion | str) -> dict[str, str | None]:
    """The drawings; None where there is nothing to draw."""
    from lam.show.charts import camera_chart, direction_chart, final_chart, history_chart, perplexity_chart, wheel

    plane = principal_plane(clips.encodings.reshape(len(clips.encodings), -1))
    history, final = read_history(config.lam), final_counts(config)
    return {
        "direction": None if isinstance(motion, str) else direction_chart(plane, motion),
        "wheel": None if isinstance(motion, str) else wheel(),
        "camera": camera_chart(plane, clips.cameras),
        "history": None if history is None else history_chart(history),
        "perplexity": None if history is None else perplexity_chart(history),
        "final": None if final is None else final_chart(final),
    }
