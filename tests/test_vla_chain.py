"""From frames to a policy with each kind of start: pretrained here, released, or any vision-language model."""

import json
import runpy
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from synthetic_episodes import INFO
from tiny_models import hub, prismatic, timm_lm
from tiny_store import BOTH, SIZE, labels_of, pushes_store

from core.checkpoint import CheckpointError
from core.config import ConfigError
from core.labels import LabelsError
from core.policy import Observation
from core.run import fingerprint_of_file, read_manifest
from core.statistics import StatisticsError
from core.store import Store
from core.training import TrainingConfig
from eval.replay import ReplayConfig, ReplayError, check
from eval.results import RESULTS_FILE, Result, ResultsError, append_result
from vla.checkpoint import load
from vla.demonstrations import FinetuneError
from vla.export import ExportConfig, export
from vla.finetune import DemonstrationsConfig, FinetuneVlaConfig, PolicyConfig, finetune
from vla.images import ImageError
from vla.lora import LoraConfig
from vla.parts import Part
from vla.policy import VlaPolicy
from vla.pretrain import PretrainVlaConfig, pretrain
from vla.training import Rates

ROOT = Path(__file__).resolve().parents[1]
TRAINING = TrainingConfig(steps=2, batch_size=3, validate_every=2, log_every=1, mixed_precision="no")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return pushes_store(tmp_path_factory.mktemp("episodes") / "store")


@pytest.fixture(scope="module")
def labels(store, tmp_path_factory):
    directory = tmp_path_factory.mktemp("labels")
    labels_of(store).save(directory / "labels.safetensors")
    return directory


@pytest.fixture(scope="module")
def language(tmp_path_factory) -> Part:
    return timm_lm(tmp_path_factory.mktemp("language"))


def pretraining(store, labels, language, out, **changes) -> PretrainVlaConfig:
    given = {"store": str(store.path), "labels": str(labels), "backbone": language, "out": str(out)}
    return PretrainVlaConfig(**given | {"image_size": SIZE, "training": TRAINING} | changes)


@pytest.fixture(scope="module")
def pretrained(store, labels, language, tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrained") / "run"
    pretrain(pretraining(store, labels, language, out, views=BOTH, history=2))
    return out


def tuning(store, path, out, data=None, policy=None, **changes) -> FinetuneVlaConfig:
    data = DemonstrationsConfig(path=str(store.path), **data or {})
    policy = PolicyConfig(path=str(path), **policy or {})
    return FinetuneVlaConfig(
        **{"data": data, "policy": policy, "out": str(out), "horizon": 3, "training": TRAINING} | changes
    )


def observation(store: Store, **changes) -> Observation:
    images = {view: store.frames(0, view, [0])[0] for view in BOTH}
    return Observation(**{"images": images, "proprioception": store.proprioception(0)[0]} | changes)


def acts(directory, store: Store) -> np.ndarray:
    policy = VlaPolicy(directory)
    policy.reset("push the cube", seed=0)
    return policy.act(observation(store)).actions


def test_pretraining_says_how_much_better_than_the_majority_it_is(pretrained):
    summary = read_manifest(pretrained)["summary"]
    assert {"validation_accuracy", "validation_accuracy_0", "validation_majority"} <= set(summary)
    compared = summary["token_accuracy"]
    assert compared["accuracy"] == pytest.approx(summary["validation_accuracy"])
    assert compared["advantage"] == pytest.approx(compared["accuracy"] - compared["majority"])
    assert compared["accuracy_ci95"][0] <= compared["accuracy"] <= compared["accuracy_ci95"][1]
    assert (compared["samples"], compared["episodes"]) == (8 + 9, 2)
    assert summary["validation_perplexity"] == pytest.approx(np.exp(summary["validation_loss"]))


def test_two_cameras_and_a_history_are_kept_from_pretraining_to_acting(pretrained, store, labels, tmp_path):
    finetune(tuning(store, pretrained, tmp_path / "policy", {"labels": str(labels)}))
    policy = VlaPolicy(tmp_path / "policy")
    assert policy.cameras == BOTH
    policy.reset("push the cube", seed=0)
    for past in (0, 1, 2, 2):
        assert len(policy.session.history) == past
        assert policy.act(observation(store)).actions.shape == (3, 7)
    with pytest.raises(KeyError, match=r"sees the cameras \['front', 'side'\]; the observation lacks \['side'\]"):
        policy.act(observation(store, images={"front": np.zeros((48, 64, 3), np.uint8)}))
    with pytest.raises(FinetuneError, match=r"reads a history of latent actions; set data.labels"):
        finetune(tuning(store, pretrained, tmp_path / "other"))
    with pytest.raises(FinetuneError, match="names 1 cameras, the model was trained on 2"):
        finetune(tuning(store, pretrained, tmp_path / "other", {"labels": str(labels), "views": ["side"]}))


def test_adapters_of_a_pretrained_model_are_saved_alone_and_belong_to_it(store, labels, language, tmp_path):
    pretrain(pretraining(store, labels, language, tmp_path / "pretrained"))
    finetune(tuning(store, tmp_path / "pretrained", tmp_path / "policy", lora=LoraConfig(rank=2)))
    sizes = [(tmp_path / run / "model.safetensors").stat().st_size for run in ("pretrained", "policy")]
    assert sizes[1] < sizes[0] / 3
    before = acts(tmp_path / "policy", store)
    assert np.isfinite(before).all()
    other = language.model_copy(update={"options": language.options | {"pool": 4}})
    pretrain(pretraining(store, labels, other, tmp_path / "pretrained"))
    with pytest.raises(CheckpointError, match=r"belong to weights|does not fit"):
        acts(tmp_path / "policy", store)


@pytest.mark.parametrize("head", ["l1_pool", "bins"])
def test_a_released_model_is_fine_tuned_on_a_new_robot(store, tmp_path, capsys, head):
    released, knows = tmp_path / "released", head == "bins"
    prismatic(released)
    data = {"views": ["front"]}
    policy = {"num_codes": 16, "num_tokens": 4, "options": {"knows_latents": True} if knows else {}}
    settings = {"lora": LoraConfig(rank=2), "head": Part(name=head), "rates": Rates(backbone=1.0)}
    finetune(tuning(store, released, tmp_path / "policy", data, policy, **settings))
    assert ("nothing taught this model latent actions" in capsys.readouterr().err) == (not knows)
    assert acts(tmp_path / "policy", store).shape == (3, 7)
    _, description, facts = load(tmp_path / "policy")
    assert description.backbone.name == "prismatic"
    assert facts["control_hz"] == pytest.approx(INFO.control_hz)


def test_any_vision_language_model_is_fine_tuned_without_latent_tokens(store, tmp_path):
    hub("smolvlm", tmp_path / "model")
    data, policy = {"views": ["front", "side"], "image_size": (56, 56)}, {"num_tokens": 0, "num_codes": 0}
    finetune(tuning(store, tmp_path / "model", tmp_path / "policy", data, policy, head=Part(name="flow")))
    assert acts(tmp_path / "policy", store).shape == (3, 7)


def test_what_does_not_fit_is_said_before_a_run_is_begun(store, labels, language, pretrained, tmp_path):
    other = tmp_path / "other_labels"
    other.mkdir()
    labels_of(store, "another lam").save(other / "labels.safetensors")
    out = tmp_path / "run"
    cases = [
        (FinetuneError, "has no view 'top'", tuning(store, pretrained, out, {"views": ["top", "side"]})),
        (
            LabelsError,
            "come from latent action model another lam",
            tuning(store, pretrained, out, {"labels": str(other)}),
        ),
        (CheckpointError, "there is no folder nobody/nothing", tuning(store, "nobody/nothing", out)),
        (CheckpointError, f"there is no folder {tmp_path}/nothing; policy", tuning(store, tmp_path / "nothing", out)),
        (CheckpointError, "says nothing about cameras", tuning(store, other, out)),
        (CheckpointError, "holds no model", tuning(store, tmp_path, out, {"views": ["front"]})),
        (
            ConfigError,
            "unknown name 'none'",
            tuning(store, pretrained, out, {"labels": str(labels)}, head=Part(name="none")),
        ),
    ]
    for error, problem, config in cases:
        with pytest.raises(error, match=problem):
            finetune(config)
    many = tmp_path / "many_codes"
    many.mkdir()
    labels_of(store, num_codes=9).save(many / "labels.safetensors")
    with pytest.raises(LabelsError, match="the labels have 2 tokens of 9 codes, the model 2 of 4"):
        finetune(tuning(store, pretrained, out, {"labels": str(many)}))
    with pytest.raises(ConfigError, match="adapters need pretrained ones"):
        pretrain(pretraining(store, labels, Part(name="nano"), out, lora=LoraConfig()))
    with pytest.raises(ImageError, match="set image_size, so that they are seen alike"):
        pretrain(pretraining(store, labels, language, out, views=BOTH, image_size=None))
    with pytest.raises(LabelsError, match=r"views names \['top'\]"):
        pretrain(pretraining(store, labels, language, out, views=("top",)))
    with pytest.raises(ValueError, match=r"not a run|No such file|no manifest|was not run"):
        pretrain(pretraining(store, labels, language, out, lam=str(tmp_path / "no_lam")))
    assert not out.exists()


def test_a_policy_without_statistics_does_not_act(pretrained, store, labels, tmp_path):
    with pytest.raises(CheckpointError, match="pretrained but never fine-tuned"):
        VlaPolicy(pretrained)
    finetune(tuning(store, pretrained, tmp_path / "policy", {"labels": str(labels)}))
    from core.checkpoint import read_header, read_tensors, save_tensors

    file = tmp_path / "policy" / "model.safetensors"
    header = read_header(file) | {"statistics": {}}
    save_tensors(file, read_tensors(file), header)
    with pytest.raises(StatisticsError, match="no action statistics"):
        VlaPolicy(tmp_path / "policy")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="is not a safetensors file, or is cut off"):
        VlaPolicy(tmp_path / "policy")


def test_recordings_are_replayed_before_a_robot_is_moved(pretrained, store, labels, tmp_path, capsys):
    finetune(tuning(store, pretrained, tmp_path / "policy", {"labels": str(labels)}))
    policy = VlaPolicy(tmp_path / "policy")
    config = ReplayConfig(policy="policy", data=str(store.path), out=str(tmp_path / "replay"), episodes=2)
    found = check(policy, store, config)
    assert found["episodes"] == ["push/4", "push/5"]
    assert found["steps"] == 10 + 11
    saved = json.loads((tmp_path / "replay/replay.json").read_text())
    assert [row["name"] for row in saved["dimensions"]] == list(INFO.action_space.names)
    for row in saved["dimensions"]:
        assert row["nmse_ci95"][0] <= row["nmse"] <= row["nmse_ci95"][1]
    assert (tmp_path / "replay/replay.png").stat().st_size > 10_000
    assert "NMSE" in capsys.readouterr().err
    policy.cameras = ("front", "top")
    with pytest.raises(ReplayError, match=r"lacks \['top'\]"):
        check(policy, store, config)
    policy.action_space = policy.action_space.model_copy(update={"kind": "joint_position"})
    with pytest.raises(ReplayError, match="the policy's actions have kind joint_position"):
        check(policy, store, config)


def test_everything_learns_at_the_rate_of_its_part(language):
    from tiny_models import fresh

    from vla.training import rate_of

    rate = rate_of(fresh(language), Rates(backbone=0.1, tower=0.0, untrained=0.5, head=2.0))
    names = {"model.backbone.vision.towers.0.norm.bias": 0.0, "model.backbone.project.1.bias": 0.5}
    names |= {"model.backbone.language.lm_head.weight": 0.1, "model.head.net.0.weight": 2.0}
    assert {name: rate(name) for name in names} == names


def test_an_exported_policy_acts_as_before_says_what_it_is_and_can_be_fine_tuned_on(store, labels, language, tmp_path):
    pretrain(pretraining(store, labels, language, tmp_path / "pretrained"))
    policy = tmp_path / "policy"
    finetune(tuning(store, tmp_path / "pretrained", policy, lora=LoraConfig(rank=2)))
    with pytest.raises(CheckpointError, match="which others do not have; add --merge true"):
        export(ExportConfig(policy=str(policy), out=str(tmp_path / "shared")))
    export(ExportConfig(policy=str(policy), out=str(tmp_path / "shared"), merge=True, licence="mit"), ["a line"])
    np.testing.assert_allclose(acts(tmp_path / "shared", store), acts(policy, store), atol=2e-3)  # bfloat16
    card = (tmp_path / "shared/README.md").read_text()
    for told in ("license: mit", "| sees | front |", "a line", "push the cube 1", "| latent actions of | a lam |"):
        assert told in card
    assert str(tmp_path) not in (tmp_path / "shared/manifest.json").read_text()
    finetune(tuning(store, tmp_path / "shared", tmp_path / "again", policy={"num_tokens": 2, "num_codes": 4}))
    assert acts(tmp_path / "again", store).shape == (3, 7)
    with pytest.raises(CheckpointError, match="exists; choose another folder"):
        export(ExportConfig(policy=str(policy), out=str(tmp_path / "shared"), merge=True))
    with pytest.raises(CheckpointError, match="never fine-tuned"):
        export(ExportConfig(policy=str(tmp_path / "pretrained"), out=str(tmp_path / "nothing")))
    with pytest.raises(CheckpointError, match="there is no folder nobody/nothing"):
        VlaPolicy("nobody/nothing")


def run(monkeypatch, *words) -> None:
    """The export script, in this process, so that what it raises can be looked at."""
    monkeypatch.setattr(sys, "argv", ["export_policy.py", *map(str, words)])
    runpy.run_path(str(ROOT / "scripts/export_policy.py"))["main"]()


def test_the_card_reports_episodes_of_this_policy_alone_and_nothing_of_the_machine(store, tmp_path, monkeypatch):
    prismatic(tmp_path / "released")
    policy, evaluation = tmp_path / "policy", tmp_path / "evaluation"
    finetune(tuning(store, tmp_path / "released", policy, {"views": ["front"]}, {"num_codes": 16, "num_tokens": 4}))
    evaluation.mkdir()
    same = {"task": "push", "instruction": "push", "success_at_any_time": True, "steps": 3, "seconds": 1.0}
    own = fingerprint_of_file(policy / "model.safetensors")
    for seed in range(10):
        for arm, fingerprint in (("ours", own), ("another", "another policy")):
            success = seed < (7 if arm == "ours" else 1)
            told = {"arm": arm, "seed": seed, "success_at_end": success, "policy_fingerprint": fingerprint}
            append_result(evaluation / RESULTS_FILE, Result(**same | told))
    words = ("--policy", policy, "--out", tmp_path / "shared", "--evaluation", evaluation)
    run(monkeypatch, *words)
    card = (tmp_path / "shared/README.md").read_text()
    assert "| ours | push | 70% | 40% to 89% | 10 |" in card
    assert "another" not in card
    assert "| x | m |" in card
    for file in (tmp_path / "shared").rglob("*"):
        assert file.is_dir() or str(tmp_path).encode() not in file.read_bytes(), file
    assert acts(tmp_path / "shared", store).shape == (3, 7)
    (tmp_path / "shared").rename(tmp_path / "elsewhere")
    (tmp_path / "released").rename(tmp_path / "gone")
    assert acts(tmp_path / "elsewhere", store).shape == (3, 7)
    append_result(tmp_path / RESULTS_FILE, Result(**same | told))
    with pytest.raises(ResultsError, match=rf"has no episode of .*policy \(fingerprint {own}\); evaluate it"):
        run(monkeypatch, *words[:3], tmp_path / "other", "--evaluation", tmp_path)
    assert not (tmp_path / "other").exists()


def test_a_folder_that_cannot_be_uploaded_is_made_and_says_how_to(store, tmp_path, monkeypatch):
    hub("llava", tmp_path / "model")
    data, policy = {"views": ["front"], "image_size": (56, 56)}, {"num_tokens": 0, "num_codes": 0}
    finetune(tuning(store, tmp_path / "model", tmp_path / "policy", data, policy))
    words = ("--policy", tmp_path / "policy", "--out", tmp_path / "shared")
    with pytest.raises(CheckpointError, match="push is 'mine', not OWNER/NAME"):
        run(monkeypatch, *words, "--push", "mine")
    assert not (tmp_path / "shared").exists()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match=r"was made but could not be uploaded to me/mine: .*`hf auth login`"):
        run(monkeypatch, *words, "--push", "me/mine")
    assert acts(tmp_path / "shared", store).shape == (3, 7)
