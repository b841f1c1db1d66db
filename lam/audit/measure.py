"""The sections of an audit, measured one after another; what a store cannot tell is left out with a sentence."""

import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tqdm import tqdm

from core.packaged import WeightsError
from core.run import is_done, read_manifest
from core.store import Store, StoreError
from core.vision import load_encoder
from lam.audit.bench import FEWEST_EPISODES, Bench
from lam.audit.probes import one_hot
from lam.audit.sections import action, codebook, decoding, generalisation, hygiene, leakage, nuisances, transplant
from lam.audit.sections import viewpoint as views
from lam.audit.sections.numbers import Number, Section
from lam.audit.subjects import CEILINGS, DIFFERENCE, FLOOR

Rows = dict[str, dict[str, Number]]
COLLECT = "scripts/collect_maniskill.py"


def measured(bench: Bench) -> list[Section]:
    """All sections, with progress on standard error."""
    estimates = len(bench.subjects) + len(bench.references) if bench.dims and bench.has_folds else 0
    steps = estimates * (1 + bench.config.primary_permutations) + 6
    with tqdm(total=steps, desc="audit: measure", unit="step", mininterval=1.0, smoothing=0.1) as bar:
        sections = [action_section(bench, bar)]
        for section in (
            viewpoint_section, nuisance_section, leakage_section, codebook_section, generalisation_section,
            hygiene_section,
        ):  # fmt: skip
            sections.append(section(bench))
            bar.update()
    return sections


def action_section(bench: Bench, bar: Any) -> Section:
    """I(Z; A), entropy, decoding, and decoding with few labels."""
    about = f"What has to be explained, A_t: {bench.action}."
    section = Section("action", "Is it about the action?", about, [], [])
    if (sentence := _no_probes(bench)) is not None:
        return section._replace(about="", left_out=[sentence])
    config, sample = bench.config, bench.sample
    latents = {one.name: action.of_codes(one.codes, one.num_codes) for one in bench.subjects}
    latents |= {name: reference.held_out for name, reference in bench.references.items()}
    counts = (config.primary_permutations, config.permutations)
    rows = {
        name: action.action_numbers(
            one, sample.actions, sample.episodes, bench.dims, counts, config.seed, lambda: bar.update()
        )
        for name, one in latents.items()
    }
    tables, left_out = action.tables(rows, bench.dims), []
    few = few_label_rows(bench)
    reached = [count for count in config.labels if any(count in row for row in few.values())]
    if reached:
        assert bench.training is not None
        tables.append(decoding.few_labels_table(few, reached, config.label_draws, bench.training.size))
    if bench.training is None:
        left_out.append(
            "Decoding with few labels and the inverse-dynamics ceiling: the store has no training episodes."
        )
    elif set(config.labels) - set(reached):
        lacking = ", ".join(str(count) for count in config.labels if count not in reached)
        left_out.append(f"Decoding with {lacking} labels: there are {bench.training.size} training transitions.")
    if bench.training is not None and CEILINGS[0] not in rows:
        left_out.append("The inverse-dynamics ceiling: it takes 5 training episodes, with actions that vary.")
    return section._replace(tables=tables, left_out=left_out)


def few_label_rows(bench: Bench) -> dict[str, dict[int, Number]]:
    """NMSE by number of labels of every row that says something of training transitions."""
    if bench.training is None:
        return {}
    config, sample, known = bench.config, bench.sample, bench.training
    pairs = {
        one.name: (one_hot(one.codes, one.num_codes), one_hot(one.training_codes, one.num_codes))
        for one in bench.subjects
        if one.training_codes is not None
    }
    if (reference := bench.references.get(DIFFERENCE)) is not None and reference.training is not None:
        pairs[DIFFERENCE] = (reference.held_out.values, reference.training)
    rows: dict[str, dict[int, Number]] = {}
    for name, (held_out, training) in pairs.items():
        labelled = (training, known.actions, known.episodes)
        given = (held_out, sample.actions, sample.episodes, labelled)
        found = {n: decoding.few_label_error(*given, n, config.label_draws, config.seed) for n in config.labels}
        rows[name] = {count: number for count, number in found.items() if number is not None}
    return rows


def viewpoint_section(bench: Bench) -> Section:
    """What codes tell of the camera."""
    sample, config = bench.sample, bench.config
    names = sample.dataset.views
    section = Section("viewpoint", "Is it about the viewpoint?", "", [], [])
    given = (sample.indices, sample.views, sample.episodes)
    rows = {
        one.name: views.view_numbers(one.codes, one.num_codes, *given, config.permutations, config.seed)
        for one in bench.subjects
    }
    if not any(rows.values()):
        sentence = "No held-out transition was seen by two cameras, so nothing can be said about viewpoints."
        return section._replace(left_out=[f"{sentence} {more_cameras(bench.store)}".strip()])
    pairs = {one.name: views.pair_numbers(one.codes, *given, names, config.seed) for one in bench.subjects}
    tables = [views.views_table(rows, len(names))] + [views.pairs_table(pairs)] * (len(names) > 2)
    left_out = [] if bench.has_folds else [f"Naming the camera: {_few_episodes(bench)}"]
    return section._replace(tables=tables, left_out=left_out)


def more_cameras(store: Store) -> str:
    """How more cameras can be rendered of a simulated store; nothing where it cannot."""
    if not (store.path / "recordings").is_dir() or not is_done(store.path):
        return ""
    manifest = read_manifest(store.path)
    words = shlex.split(manifest["command"].replace("=", " "))
    if COLLECT not in manifest["command"] or "--config" not in words:
        return ""
    seen = ["front", "random_1", "random_2", "random_3"]
    groups = [
        group | {"views": list(dict.fromkeys([*group["views"], *seen]))} for group in manifest["config"]["groups"]
    ]
    text = yaml.safe_dump(groups, default_flow_style=True, width=10**6).strip()
    changed = {"--out": f"{store.path}_views", "--recordings": str(store.path), "--groups": text}
    settings = dict(pairwise(words))
    settings = {key: value for key, value in settings.items() if key.startswith("--")} | changed
    rest = shlex.join(word for pair in settings.items() for word in pair)
    return f"Its recordings can be rendered from more cameras: python {COLLECT} {rest}"


def nuisance_section(bench: Bench) -> Section:
    """What codes tell of the scene beyond the action."""
    section = Section("nuisances", "Is it about something else?", "", [], [])
    if (sentence := _no_probes(bench)) is not None:
        return section._replace(left_out=[sentence])
    sample, config = bench.sample, bench.config
    known, missing = nuisances.nuisances_of(sample)
    rows: Rows = {
        one.name: {
            name: nuisances.conditional_bits(
                one.codes, values, sample.actions, sample.episodes, config.permutations, config.seed
            )
            for name, values in known.items()
        }
        for one in bench.subjects
    }
    left_out = [f"{sentence[0].upper()}{sentence[1:]}." for sentence in missing]
    return section._replace(tables=[nuisances.nuisances_table(rows)] * bool(known), left_out=left_out)


def leakage_section(bench: Bench) -> Section:
    """No motion, shifted pictures, and transplants."""
    sample, config, left_out = bench.sample, bench.config, []
    rows: Rows = {
        one.name: leakage.zero_motion_numbers(one.real, one.still, sample.episodes, config.seed)
        for one in bench.subjects
    }
    tables = [leakage.zero_motion_table(rows)]
    try:
        frames = shifted_pairs(bench)
    except (WeightsError, StoreError, ValueError) as error:
        left_out.append(f"Shifted pictures: {error}.")
    else:
        moved = {
            one.name: leakage.shift_numbers(one.model, one.real, frames, sample.episodes, config.seed)
            for one in bench.subjects
        }
        tables.append(leakage.shift_table(moved, frames))
    donors = transplant.donors_of(sample, config.seed)
    decoding = [one for one in bench.subjects if one.name not in {FLOOR, *bench.supervised}]
    decoded = {one.name: transplant.transplant_numbers(one, sample, donors, config.seed) for one in decoding}
    tables.append(transplant.transplant_table(decoded))
    left_out += [f"Transplants of {name}: its objective trains no decoder." for name in bench.supervised]
    for name, why in (("camera", "no transition was seen by two cameras"), ("nearest", "there are no actions")):
        if name not in donors:
            left_out.append(f"Transplants, {transplant.COLUMNS[name]}: {why}.")
    return Section("leakage", "Does it leak the scene?", "", tables, left_out)


def shifted_pairs(bench: Bench) -> leakage.ShiftedFrames:
    """Some of the first frames, shifted and encoded.

    Raises:
        ValueError: the frames or the encoder cannot be had, or features are no longer what the encoder gives.
    """
    sample, facts = bench.sample, bench.lam_facts
    encoder = load_encoder(facts.encoder)
    if encoder.fingerprint != facts.encoder_fingerprint:
        raise ValueError(
            "the models take features that were made from the encoder's afterwards (principal components), or by other "
            "weights than those on this machine, so that changed pictures cannot be encoded"
        )
    chosen = np.random.default_rng(bench.config.seed).permutation(sample.size)[: bench.config.shifted_frames]
    rows = np.sort(chosen)
    where = (sample.episodes[rows], bench.frames[rows], sample.views[rows])
    patches = sample.dataset.num_patches
    return leakage.shifted_frames(bench.store, encoder, sample.dataset.views, where, rows, patches, bench.config.seed)


def codebook_section(bench: Bench) -> Section:
    """How codes are used."""
    episodes, config = bench.sample.episodes, bench.config
    tokens = max(one.codes.shape[1] for one in bench.subjects)
    rows = {one.name: codebook.token_numbers(one.codes, one.num_codes, episodes, config.seed) for one in bench.subjects}
    tables = [codebook.tokens_table(rows, tokens)]
    if tokens > 1:
        shared = {
            one.name: codebook.redundancy_numbers(one.codes, episodes, config.permutations, config.seed)
            for one in bench.subjects
        }
        tables.append(codebook.redundancy_table(shared))
    usage = {one.name: codebook.usage(one.codes, one.num_codes) for one in bench.subjects}
    return Section("codebook", "Is the codebook used?", "", tables, [], {"usage": usage})


def generalisation_section(bench: Bench) -> Section:
    """Bits and error by camera and by task."""
    title = "Does it hold for other cameras and tasks?"
    if (sentence := _no_probes(bench)) is not None:
        return Section("generalisation", title, "", [], [sentence])
    sample, config, names = bench.sample, bench.config, bench.sample.dataset.views
    tasks = np.array([bench.store.episodes[int(episode)].task for episode in sample.episodes])
    trained, shuffles = trained_views(bench), config.primary_permutations
    cameras: dict[str, dict[str, dict[str, Number]]] = {}
    by_task: dict[str, dict[str, dict[str, Number]]] = {}
    for one in bench.subjects:
        given = (one_hot(one.codes, one.num_codes), sample.actions, sample.episodes)
        own = [names.index(view) for view in trained.get(one.name) or names if view in names]
        found = generalisation.by_camera(*given, sample.views, own or list(range(len(names))), shuffles)
        cameras[one.name] = {names[camera]: numbers for camera, numbers in found.items()}
        by_task[one.name] = generalisation.by_task(*given, tasks, shuffles, config.seed)
    seen = "; ".join(f"{name} on {', '.join(of) if of else 'another store'}" for name, of in trained.items())
    about = (
        "Probes fitted on the cameras that a model was trained on, other episodes, and scored at each camera. Trained: "
        f"{seen}. Bits: contrastive bound with a normal density, at most log2 of the rows; NMSE: 1 is the mean of the "
        "rows that are scored."
    )
    tables = generalisation.place_tables("camera", about, cameras) if len(names) > 1 else []
    left_out = [] if tables else [f"By camera: {names[0]} is the only one."]
    if len(np.unique(tasks)) > 1:
        about = "Probes fitted on all other tasks, and scored on this one."
        tables += generalisation.place_tables("task", about, by_task)
    else:
        left_out.append(f"By task: all held-out episodes are of one task, {tasks[0]}.")
    return Section("generalisation", title, "", tables, left_out, {"trained_views": trained})


def trained_views(bench: Bench) -> dict[str, list[str]]:
    """The cameras of the audited store that each model was trained on; none where it saw another store."""
    found = {}
    for name, manifest in bench.manifests.items():
        views: list[str] = []
        for source, settings in manifest["config"].get("data", {}).items():
            if manifest["inputs"].get(f"{source}.store") == bench.store.fingerprint:
                views += settings.get("views") or bench.sample.dataset.views
        found[name] = [view for view in dict.fromkeys(views)]
    return found


def hygiene_section(bench: Bench) -> Section:
    """Overlap of held-out with training episodes, and the inflation of a split by frames."""
    left_out, facts = [], {}
    for name, stores in training_stores(bench).items():
        facts[name] = []
        for path in stores:
            try:
                trained = Store.open(path)
            except (StoreError, FileNotFoundError):
                left_out.append(
                    f"Overlap of {name} with its training episodes: there is no store at {path.absolute()}."
                )
                continue
            found = hygiene.overlap(bench.store, trained)
            facts[name].append({"store": str(path)} | found._asdict())
            if not found.is_compared:
                left_out.append(
                    f"Copies under another name among the training episodes of {name}: {path} has no signatures."
                )
    tables = []
    if (sentence := _no_probes(bench)) is None:
        sample = bench.sample
        latents = {one.name: one_hot(one.codes, one.num_codes) for one in bench.subjects}
        latents[DIFFERENCE] = bench.references[DIFFERENCE].held_out.values
        rows = {n: hygiene.inflation_numbers(v, sample.actions, sample.episodes) for n, v in latents.items()}
        tables.append(hygiene.inflation_table(rows))
    else:
        left_out.append(sentence)
    return Section("hygiene", "Is the split clean?", "", tables, left_out, {"overlap": facts})


def training_stores(bench: Bench) -> dict[str, list[Path]]:
    """The stores that each model was trained on; the audited one is known by its fingerprint, wherever it lies."""
    found: dict[str, list[Path]] = {}
    for name, manifest in bench.manifests.items():
        data = manifest["config"].get("data", {})
        is_same = {source: manifest["inputs"].get(f"{source}.store") == bench.store.fingerprint for source in data}
        found[name] = [bench.store.path if is_same[s] else Path(settings["store"]) for s, settings in data.items()]
    return found


def _no_probes(bench: Bench) -> str | None:
    """Why nothing about actions can be measured; None where it can."""
    if not bench.dims:
        return "The store has no actions, so nothing about actions can be measured."
    if not bench.has_folds:
        return _few_episodes(bench)
    if not np.ptp(bench.sample.actions, axis=0).any():
        return "The actions of these episodes never change, so there is nothing to explain."
    return None


def _few_episodes(bench: Bench) -> str:
    episodes = len(np.unique(bench.sample.episodes))
    return (
        f"{episodes} held-out episodes cannot make {FEWEST_EPISODES} folds; hold out more of them: python "
        f"scripts/split_episodes.py {bench.store.path} --held-out 0.4."
    )
