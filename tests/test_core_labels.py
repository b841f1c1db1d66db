import numpy as np
import pytest

from core.labels import LabelsError, LabelsInfo, LatentLabels


def labels(**changes) -> LatentLabels:
    info = LabelsInfo(
        lam_fingerprint="lam1",
        store_fingerprint="store1",
        views=("front", "left"),
        is_vote=False,
        gap_s=0.4,
        num_codes=16,
        num_tokens=4,
    )
    rng = np.random.default_rng(0)
    values = {
        "episodes": np.arange(5),
        "frames": np.arange(5),
        "views": np.arange(5) % 2,
        "codes": rng.integers(0, 16, (5, 4)),
    }
    return LatentLabels(info=info, **(values | changes))


def test_labels_survive_the_disk(tmp_path):
    saved = labels()
    saved.save(tmp_path / "labels.safetensors")
    read = LatentLabels.load(tmp_path / "labels.safetensors")
    assert read.info == saved.info
    for name in ("episodes", "frames", "views", "codes"):
        np.testing.assert_array_equal(getattr(read, name), getattr(saved, name))
    assert [path.name for path in tmp_path.iterdir()] == ["labels.safetensors"]


def test_labels_of_other_episodes_or_of_another_model_are_refused():
    made = labels()
    made.require(store_fingerprint="store1")
    made.require(store_fingerprint="store1", lam_fingerprint="lam1")
    with pytest.raises(LabelsError, match="made for episodes store1, the store is store2"):
        made.require(store_fingerprint="store2")
    with pytest.raises(LabelsError, match="come from latent action model lam1, expected lam2"):
        made.require(store_fingerprint="store1", lam_fingerprint="lam2")


def test_codes_that_no_codebook_has_are_refused():
    with pytest.raises(LabelsError, match=r"span 0\.\.16, not 0\.\.15"):
        labels(codes=np.array([[0, 1, 2, 16]] * 5))
    with pytest.raises(LabelsError, match="3 codes a transition, the labels state 4"):
        labels(codes=np.zeros((5, 3), int))


def test_absent_labels_name_the_script_that_makes_them(tmp_path):
    with pytest.raises(LabelsError, match=r"make them with scripts/label_latents\.py"):
        LatentLabels.load(tmp_path / "none.safetensors")
