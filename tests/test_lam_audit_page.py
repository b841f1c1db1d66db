"""The audit as a whole on small episodes: its page and JSON, what it leaves out, and what it refuses."""

import json
import re
import runpy
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from core.episode import Episode, View
from core.frames import FeatureCache
from core.run import Stage, StageError
from core.spaces import END_EFFECTOR_DELTA
from core.store import Store, StoreInfo, finish_store, write_part
from core.store_layout import ColumnInfo
from core.vision import EncoderConfig
from lam.audit.audit import AuditConfig, audit, open_models, take_sample
from lam.audit.bench import open_bench
from lam.audit.estimators import networks
from lam.audit.measure import few_label_rows, leakage_section, more_cameras
from lam.audit.sample import computed_once
from lam.audit.sections.hygiene import overlap
from lam.checkpoint import LamFacts, save_lam
from lam.config import LamConfig
from lam.dataset import TransitionsError
from lam.label import LabelsError
from lam.model import LatentActionModel
from lam.sources import open_features

TINY = EncoderConfig(name="pixels_patch16", image_size=32, dtype="float32")
LENGTH = 8


def write_store(path, views=("front", "side"), episodes=14, with_actions=True, with_scene=True, held_out=2) -> Store:
    """A bright square that moves as it is told; every so many episodes are held out."""
    space = END_EFFECTOR_DELTA if with_actions else None
    info = StoreInfo(
        control_hz=5.0, views=dict.fromkeys(views, (32, 32)), action_space=space, proprioception_dims=2 * with_scene,
        columns={"object_pose": ColumnInfo("float32", (3,))} if with_scene else {}, robot_type="arm",
    )  # fmt: skip
    written = [one_episode(number, views, space, with_scene, held_out) for number in range(episodes)]
    write_part(path, 0, written, info=info)
    finish_store(path, info, 1)
    return Store.open(path)


def one_episode(number, views, space, with_scene, held_out) -> Episode:
    rng = np.random.default_rng(number)
    actions = np.zeros((LENGTH, 7), np.float32)
    actions[:, :3] = rng.normal(scale=0.03, size=(LENGTH, 3))
    places = np.clip(12 + 60 * np.cumsum(actions[:, :2], axis=0), 0, 24).astype(int)
    frames = np.full((LENGTH, 32, 32, 3), rng.integers(40, 90), np.uint8)
    for frame, (down, across) in zip(frames, places, strict=True):
        frame[down : down + 8, across : across + 8] = 220
    pose = rng.normal(size=3).astype(np.float32)
    return Episode(
        episode_id=f"e{number}",
        task="push" if number % 4 < 2 else "pull",
        instruction="push",
        control_hz=5.0,
        views={view: View(frames=np.roll(frames, 3 * place, axis=2)) for place, view in enumerate(views)},
        actions=actions if space else None,
        action_space=space,
        proprioception=rng.normal(size=(LENGTH, 2)).astype(np.float32) if with_scene else None,
        columns={"object_pose": np.tile(pose, (LENGTH, 1))} if with_scene else {},
        is_labelled=False,
        split="held_out" if held_out and number % held_out == 0 else "train",
    )


class RunConfig(AuditConfig):
    """What the manifest of a training says that an audit reads."""

    objective: str = "self_cross"
    """Name of the row."""


def write_run(path, features, store, name="train_lam", bottleneck="vq", views=()) -> str:
    """A run as training leaves it, its model untrained."""
    config = LamConfig(
        network="perceptron", width=16, num_tokens=2, code_dim=8, num_codes=4, bottleneck=bottleneck,
        codebook="per_token", normalise_encodings=True,
    )  # fmt: skip
    torch.manual_seed(1)
    patches = features.grid.rows * features.grid.cols
    model = LatentActionModel(config, features.dim, patches)
    frames = torch.from_numpy(features.features("front", np.repeat(np.arange(6), 8), np.tile(np.arange(8), 6))).float()
    with torch.no_grad():
        model.bottleneck.revive(model.encode(torch.stack([frames[:-2], frames[2:]], 1)), torch.Generator())
    stage = Stage.open(path, name, RunConfig(out="o", data="d"), {"video.store": store.fingerprint})
    stage.record["config"]["data"] = {"video": {"store": str(store.path), "views": list(views)}}
    facts = LamFacts("", features.encoder_fingerprint, features.encoder_config, 0.4, 1)
    fingerprint = save_lam(path, config, model.state_dict(), (features.dim, patches), facts)
    stage.finish({}, fingerprint)
    return str(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store") / "episodes")


@pytest.fixture(scope="module")
def cache(store, tmp_path_factory):
    return FeatureCache.build(store, TINY, tmp_path_factory.mktemp("cache") / "features")


@pytest.fixture(scope="module")
def run(store, cache, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "lam", cache, store, views=("front",))


def settings(out, store, run, cache=None, **changes) -> AuditConfig:
    quick = {"permutations": 2, "primary_permutations": 1, "labels": (10, 30), "label_draws": 2, "shifted_frames": 20}
    features = str(cache.directory) if cache else ""
    return AuditConfig(
        **({"out": str(out), "data": str(store.path), "lam": run, "features": features} | quick | changes)
    )


@pytest.fixture(scope="module")
def audited(store, cache, run, tmp_path_factory):
    """Directory of an audit with everything in it."""
    out = tmp_path_factory.mktemp("audit") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "MAX_STEPS", 30)  # what the networks learn is no matter here
        audit(settings(out, store, run, cache))
    return out


def read(out) -> dict:
    return json.loads((out / "audit.json").read_text())


def numbers_in(value):
    if isinstance(value, dict):
        if "value" in value and "kind" not in value:
            yield value
        else:
            for inner in value.values():
                yield from numbers_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers_in(inner)


def test_every_number_has_an_interval_a_null_and_what_it_rests_on(audited):
    result = json.loads((audited / "audit.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    sections = result["sections"]
    assert list(sections) == [
        "action", "viewpoint", "nuisances", "leakage", "codebook", "generalisation", "hygiene",
    ]  # fmt: skip
    for key, section in sections.items():
        found = list(numbers_in(section))
        assert found, key
        for number in found:
            assert set(number) == {"value", "ci95", "null", "n", "episodes"}
            assert len(number["ci95"]) == 2
            assert number["null"]["kind"]
            assert number["null"]["value"] is not None
            assert number["n"] >= number["episodes"] >= 2


def test_the_rows_are_the_model_its_floor_and_what_has_no_bottleneck(audited):
    result = read(audited)
    assert result["action"] == "sum of x (m), y (m), z (m) commanded over 0.4 s (2 steps)"
    arms = [row["arm"] for row in result["rows"]]
    assert arms == [
        "self_cross", "untrained", "frozen_features", "inverse_dynamics_linear", "inverse_dynamics_mlp",
    ]  # fmt: skip
    model, features = result["rows"][0], result["rows"][2]
    assert set(model["probe_nmse_by_dim"]) == {"x", "y", "z"}
    assert model["n"] == 7 * 6 * 2
    assert model["entropy_bits"] <= 4.1
    assert features["entropy_bits"] is None
    assert result["sections"]["generalisation"]["trained_views"] == {"self_cross": ["front"]}


def test_the_page_stands_alone_and_says_what_was_found(audited):
    page = (audited / "page.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", page)
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert "<script" not in page
    assert "None" not in re.sub(r"fill:\s*none|<style>.*?</style>", "", page)
    for sentence in read(audited)["findings"]:
        assert sentence.split(":")[0].split("'")[0] in page
    unclosed = Unclosed()
    unclosed.feed(page)
    assert not unclosed.open


class Unclosed(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "link", "img", "br", "path", "use", "line", "circle", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in ("path", "use", "line", "circle", "rect"):
            return
        assert self.open.pop() == tag


def test_features_computed_at_once_are_those_of_the_cache(store, cache, tmp_path):
    config = AuditConfig(out="", data="", views=("side", "front"))
    samples = [take_sample(store, source, config, 0.4, 1) for source in (cache, open_features(store, "", TINY))]
    at_once = computed_once(samples[1], tmp_path)
    rows = np.random.default_rng(0).permutation(samples[0].size)
    np.testing.assert_array_equal(at_once.features(rows), samples[0].features(rows))
    assert not list(tmp_path.iterdir())


def test_fewer_transitions_are_drawn_whole_with_all_cameras(store, cache):
    config = AuditConfig(out="", store="")
    sample = take_sample(store, cache, config, 0.4, 1, most=9)
    assert sample.size == 18
    every = take_sample(store, cache, config, 0.4, 1)
    first = every.actions[np.searchsorted(every.indices, sample.indices)]
    np.testing.assert_array_equal(sample.actions, first)
    chunk = take_sample(store, cache, config.model_copy(update={"action": "chunk"}), 0.4, 1)
    np.testing.assert_allclose(chunk.actions[:, :3] + chunk.actions[:, 3:], every.actions, atol=1e-6)


def test_episodes_without_actions_get_the_sections_that_need_none(tmp_path, cache):
    plain = write_store(tmp_path / "episodes", views=("front",), episodes=6, with_actions=False, with_scene=False)
    run = write_run(tmp_path / "lam", open_features(plain, "", TINY), plain)
    audit(settings(tmp_path / "out", plain, run))
    result = read(tmp_path / "out")
    assert result["rows"] == []
    assert result["action"] == "these episodes have no actions"
    for key in ("action", "nuisances", "generalisation"):
        assert result["sections"][key]["left_out"] == [
            "The store has no actions, so nothing about actions can be measured."
        ]
    assert "seen by two cameras" in result["sections"]["viewpoint"]["left_out"][0]
    assert {"zero_motion", "pixel_shift", "transplant"} < set(result["sections"]["leakage"])
    assert result["sections"]["codebook"]["tokens"]["self_cross"]
    assert "nearest" not in result["sections"]["leakage"]["transplant"]["self_cross"]


def test_models_whose_features_cannot_be_computed_again_are_not_shown_shifted_pictures(store, tmp_path):
    reduced = FeatureCache.build(store, TINY, tmp_path / "features", components=6)
    run = write_run(tmp_path / "lam", reduced, store)
    config = settings(tmp_path / "out", store, run, reduced, transitions=15, training_transitions=0)
    bench = open_bench(config, open_models(config), store, reduced, tmp_path)
    section = leakage_section(bench)
    assert [table.key for table in section.tables] == ["zero_motion", "transplant"]
    assert "principal components" in section.left_out[0]
    assert bench.training is None
    assert list(bench.references) == ["frozen_features"]
    assert few_label_rows(bench) == {}


def test_what_cannot_be_audited_is_refused_in_a_sentence(store, cache, run, tmp_path):
    page = tmp_path / "page"
    with pytest.raises(ValueError, match="no latent action model; give --lam RUN"):
        audit(settings(page, store, ""))
    other = write_run(tmp_path / "policy", cache, store, name="finetune_vla")
    with pytest.raises(ValueError, match="is a run of finetune_vla, not of train_lam"):
        audit(settings(page, store, other, cache))
    continuous = write_run(tmp_path / "continuous", cache, store, bottleneck="none")
    with pytest.raises(ValueError, match="bottleneck none, which has no codes"):
        audit(settings(page, store, continuous, cache))
    with pytest.raises(TransitionsError, match="has no views"):
        audit(settings(page, store, run, cache, views=("top",)))
    with pytest.raises(ValueError, match=r"action_dims \['w'\] are unknown"):
        audit(settings(page, store, run, cache, action_dims=("w",)))
    with pytest.raises(StageError, match="no manifest"):
        audit(settings(page, store, str(tmp_path / "nothing"), cache))
    coarse = FeatureCache.build(store, TINY, tmp_path / "coarse", pool=2)
    with pytest.raises(LabelsError, match="cache them with the same encoder"):
        audit(settings(page, store, run, coarse))
    larger = FeatureCache.build(store, TINY.model_copy(update={"image_size": 64}), tmp_path / "larger")
    with pytest.raises(ValueError, match="come from encoder"):
        audit(settings(page, store, run, larger))
    unsplit = write_store(tmp_path / "unsplit", episodes=3, held_out=0)
    with pytest.raises(TransitionsError, match="has no held_out episodes"):
        audit(settings(page, unsplit, run))


def test_two_rows_cannot_have_one_name(store, cache, run, tmp_path):
    with pytest.raises(ValueError, match="would be called self_cross"):
        audit(settings(tmp_path / "out", store, run, cache, lams={"self_cross": run}))


def test_the_script_needs_no_yaml_and_the_second_time_does_nothing(audited, store, cache, run, capsys, monkeypatch):
    config = settings(audited, store, run, cache).model_dump(mode="json", exclude={"lams", "data", "views"})
    words = [word for key, value in config.items() if value not in (None, []) for word in (f"--{key}", str(value))]
    words = [word for word in words if word]
    monkeypatch.setattr(sys, "argv", ["scripts/audit_lam.py", "--store", str(store.path), *words])
    if "--action_dims" in words:
        monkeypatch.setattr(sys, "argv", [word for word in sys.argv if word not in ("--action_dims", "()")])
    runpy.run_path("scripts/audit_lam.py", run_name="__main__")
    assert "already done" in capsys.readouterr().err


def test_held_out_episodes_that_training_saw_are_counted(tmp_path):
    same = write_store(tmp_path / "a", views=("front",), episodes=6)
    found = overlap(same, same)
    assert (found.shared_ids, found.same_recordings, found.held_out, found.trained) == ([], [], 3, 3)
    other = write_store(tmp_path / "b", views=("front",), episodes=8, held_out=0)
    found = overlap(same, other)
    assert found.shared_ids == ["e0", "e2", "e4"]
    assert found.same_recordings == ["e0", "e2", "e4"]
    assert found.is_compared


def test_a_store_with_recordings_is_told_how_to_render_more_cameras(tmp_path, store):
    assert more_cameras(store) == ""
    one = write_store(tmp_path / "episodes", views=("front",), episodes=6)
    (one.path / "recordings").mkdir()
    manifest = {
        "command": "scripts/collect_maniskill.py --config configs/episodes/video_smoke.yaml --out runs/x",
        "config": {"groups": [{"task": "PushCube-v1", "episodes": 6, "views": ["front"], "labelled": False}]},
    }
    (one.path / "manifest.json").write_text(json.dumps(manifest))
    said = more_cameras(one)
    assert said.startswith("Its recordings can be rendered from more cameras: python scripts/collect_maniskill.py ")
    assert "--config configs/episodes/video_smoke.yaml" in said
    assert f"--out {one.path}_views" in said
    assert f"--recordings {one.path}" in said
    assert "views: [front, random_1, random_2, random_3]" in said
