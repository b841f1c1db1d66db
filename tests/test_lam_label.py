"""Labels: the same however many processes make them and however often they die; one view's, each's, or a vote."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from core.config import ConfigError, load_config
from core.labels import LabelsError, LabelsInfo, LatentLabels
from core.store import Store
from lam import label as module
from lam.checkpoint import load_lam
from lam.dataset import DataOptions, TransitionDataset
from lam.label import LabelConfig, codes_of, label, majority, shuffled
from lam.sources import open_features

ROOT = Path(__file__).parents[1]


def config(chain: Path, out: Path, **changes) -> LabelConfig:
    values = {"lam": chain / "lam", "store": chain / "episodes", "features": chain / "features", "out": out}
    return LabelConfig(**({name: str(path) for name, path in values.items()} | changes))


def made(settings: LabelConfig) -> LatentLabels:
    label(settings)
    return LatentLabels.load(Path(settings.out) / "labels.safetensors")


def same(one: LatentLabels, other: LatentLabels) -> bool:
    return one.info == other.info and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("episodes", "frames", "views", "codes")
    )


def test_a_vote_is_the_most_frequent_code_and_the_earlier_cameras_in_a_tie():
    codes = np.array([[3, 1], [2, 1], [2, 0], [5, 5], [4, 5]])
    voted = majority(codes, np.array([0, 0, 0, 1, 1]), 6)
    assert voted.tolist() == [[2, 1]] * 3 + [[5, 5]] * 2


def unlike(labels: LatentLabels) -> LatentLabels:
    """Labels shuffled, after a look at what may not have changed."""
    control = shuffled(labels)
    for view in np.unique(labels.views):
        rows = labels.views == view
        before, after = (np.sort(codes.codes[rows].view("i4,i4"), axis=0) for codes in (labels, control))
        assert np.array_equal(before, after), "a view's rows are the same ones, in other places"
    assert all(np.array_equal(getattr(labels, n), getattr(control, n)) for n in ("episodes", "frames", "views"))
    return control


def test_shuffled_codes_are_as_frequent_but_tell_nothing_about_where_they_stand():
    rng = np.random.default_rng(0)
    frames, episodes, views = (part.ravel() for part in np.meshgrid(np.arange(20), np.arange(100), [0, 1]))
    codes = np.stack([frames // 5 + 4 * views, rng.integers(0, 8, len(frames))], axis=1)
    info = LabelsInfo(
        lam_fingerprint="abc",
        store_fingerprint="s",
        views=("a", "b"),
        is_vote=False,
        gap_s=0.4,
        num_codes=8,
        num_tokens=2,
    )
    columns = {"episodes": episodes, "frames": frames, "views": views, "codes": codes}
    labels = LatentLabels(info=info, **{name: values.astype(np.int32) for name, values in columns.items()})
    control = unlike(labels)
    seen = control.codes[control.views == 0][:, 0]
    right = seen == frames[views == 0] // 5
    assert right.mean() == pytest.approx(0.25, abs=0.04), "chance: no tie to the place in an episode is left"
    assert same(control, shuffled(labels)), "the control is the same whenever it is made"
    with pytest.raises(LabelsError, match="abc-shuffled, expected abc"):
        control.require(store_fingerprint="s", lam_fingerprint="abc")


def test_shuffling_and_voting_exclude_each_other():
    with pytest.raises(ConfigError, match="choose one"):
        load_config(LabelConfig, None, {"out": "o", "lam": "l", "store": "s", "shuffle": True, "vote": True})


@pytest.fixture(scope="module")
def alone(chain, tmp_path_factory) -> LatentLabels:
    """Labels of each camera, by this process alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHARD_TRANSITIONS", 32)
        return made(config(chain, tmp_path_factory.mktemp("labels") / "each"))


@pytest.mark.sim
@pytest.mark.timeout(1000)
def test_each_camera_of_each_transition_is_labelled_as_one_at_a_time(chain, alone):
    store = Store.open(chain / "episodes")
    model, facts = load_lam(chain / "lam")
    views = tuple(store.info.views)
    seen = sum((record.length - 2) * len(record.views) for record in store.episodes)
    assert len(alone.codes) == seen
    source = open_features(store, str(chain / "features"), facts.encoder)
    datasets = {
        split: TransitionDataset(
            store, source, gap_s=0.4, split=split, views=views, options=DataOptions(pool=facts.pool)
        )
        for split in ("train", "held_out")
    }
    agree = 0
    rows = np.random.default_rng(0).choice(seen, 40, replace=False)
    for row in rows:
        where = (alone.episodes[row : row + 1], alone.frames[row : row + 1], np.array([2]), alone.views[row : row + 1])
        split = store.episodes[int(where[0][0])].split
        agree += np.array_equal(codes_of(model, datasets[split].features(*where))[0], alone.codes[row])
    assert agree >= 38, "batches may round differently, hardly ever enough to choose another code"


SLOW_LABELLING = """
import sys, time
from lam import label as module
from lam.label import LabelConfig, label
module.SHARD_TRANSITIONS = 32
whole = module.label_shard
def slowly(*arguments):
    time.sleep(0.1)
    return whole(*arguments)
module.label_shard = slowly
label(LabelConfig(**eval(sys.argv[1])))
"""


@pytest.mark.sim
@pytest.mark.timeout(1000)
def test_two_processes_give_the_labels_of_one(chain, alone, tmp_path):
    (tmp_path / "script.py").write_text(SLOW_LABELLING)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, str(tmp_path / "script.py"), str(config(chain, tmp_path / "two").model_dump())]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert same(LatentLabels.load(tmp_path / "two" / "labels.safetensors"), alone)
    assert not list((tmp_path / "two").glob("shard-*"))


@pytest.mark.sim
@pytest.mark.timeout(1000)
def test_a_killed_run_goes_on_with_the_shards_that_are_missing(chain, alone, tmp_path, monkeypatch):
    settings = config(chain, tmp_path / "killed")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SLOW_LABELLING, str(settings.model_dump())]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "killed").glob("shard-*.safetensors"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("shard-*.safetensors")}
    assert len(kept) >= 2
    monkeypatch.setattr(module, "SHARD_TRANSITIONS", 32)
    labelled = []
    whole = module.label_shard
    monkeypatch.setattr(
        module, "label_shard", lambda m, shard, *rest: labelled.append(shard.number) or whole(m, shard, *rest)
    )
    resumed = made(settings)
    assert not {f"shard-{number:06d}.safetensors" for number in labelled} & {path.name for path in kept}
    assert same(resumed, alone)


@pytest.mark.sim
@pytest.mark.timeout(1000)
def test_a_vote_gives_all_cameras_of_a_transition_one_label_and_one_camera_can_be_chosen(chain, alone, tmp_path):
    voted = made(config(chain, tmp_path / "vote", vote=True))
    keys = voted.episodes.astype(np.int64) * 10**6 + voted.frames
    for key in np.unique(keys):
        assert len(np.unique(voted.codes[keys == key], axis=0)) == 1
    assert voted.info.is_vote
    left = made(config(chain, tmp_path / "one", views=("random_1",)))
    position = alone.info.views.index("random_1")
    assert len(left.codes) == (alone.views == position).sum()
    assert (left.views == 0).all()
    assert left.info.views == ("random_1",)


@pytest.mark.sim
@pytest.mark.timeout(1000)
def test_the_shuffled_control_is_made_of_the_labels_and_says_what_it_is(chain, alone, tmp_path):
    control = made(config(chain, tmp_path / "shuffled", shuffle=True))
    assert same(control, shuffled(alone))
    assert (control.codes != alone.codes).any()
    manifest = json.loads((tmp_path / "shuffled" / "manifest.json").read_text())
    assert manifest["summary"]["is_shuffled"]
    assert control.info.lam_fingerprint.endswith("-shuffled")


@pytest.mark.sim
@pytest.mark.timeout(1000)
def test_labelling_refuses_unknown_cameras_and_features_of_another_form(chain, tmp_path):
    with pytest.raises(LabelsError, match=r"has no views \['top'\] with features"):
        label(config(chain, tmp_path / "top", views=("top",)))
    model, facts = load_lam(chain / "lam")
    store = Store.open(chain / "episodes")
    source = open_features(store, str(chain / "features"), facts.encoder)
    options = DataOptions(pool=1)
    dataset = TransitionDataset(store, source, gap_s=0.4, split="train", views=["front"], options=options)
    with pytest.raises(LabelsError, match=r"\(64, 384\) after pooling by 1, the latent action model takes \(16, 384\)"):
        module.require_fit(model, dataset)
