"""What a user of the VLA can get wrong ends in one sentence that names the thing, before a run or a robot begins."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from synthetic_episodes import INFO
from tiny_models import hub, prismatic, timm_lm
from tiny_store import SIZE, episode, labels_of, pushes_store

from core.checkpoint import CheckpointError, read_header, read_tensors, save_tensors
from core.episode import Episode
from core.labels import LabelsError
from core.packaged import WeightsError
from core.policy import Observation
from core.run import write_json
from core.statistics import StatisticsError
from core.store import Store, finish_store, write_part
from core.training import TrainingConfig
from vla.acting import ObservationError
from vla.export import ExportConfig, export
from vla.finetune import DemonstrationsConfig, FinetuneVlaConfig, PolicyConfig, finetune
from vla.heads.fast import FastError
from vla.images import ImageError
from vla.lora import LoraConfig
from vla.parts import Part
from vla.policy import VlaPolicy
from vla.pretrain import PretrainVlaConfig, pretrain
from vla.prompt import PromptError
from vla.training import Rates

ROOT = Path(__file__).resolve().parents[1]
TRAINING = TrainingConfig(steps=1, batch_size=2, validate_every=1, mixed_precision="no")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return pushes_store(tmp_path_factory.mktemp("episodes") / "store")


@pytest.fixture(scope="module")
def language(tmp_path_factory) -> Part:
    return timm_lm(tmp_path_factory.mktemp("language"))


def store_of(path: Path, episodes: list[Episode]) -> Store:
    write_part(path, 0, iter(episodes), info=INFO)
    finish_store(path, INFO, 1)
    return Store.open(path)


@pytest.fixture
def labels(store, tmp_path) -> Path:
    (tmp_path / "labels").mkdir()
    labels_of(store).save(tmp_path / "labels/labels.safetensors")
    return tmp_path / "labels"


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "released"
    prismatic(folder)
    return folder


def tuning(store, path, out, options=None, **changes) -> FinetuneVlaConfig:
    given = {"data": DemonstrationsConfig(path=str(store.path), views=("front",)), "out": str(out), "horizon": 3}
    policy = PolicyConfig(path=str(path), num_codes=16, num_tokens=4, options=options or {})
    return FinetuneVlaConfig(**given | {"policy": policy, "training": TRAINING} | changes)


def pretraining(store, labels, language, out, **changes) -> PretrainVlaConfig:
    given = {"store": str(store.path), "labels": str(labels), "backbone": language, "out": str(out)}
    return PretrainVlaConfig(**given | {"image_size": SIZE, "training": TRAINING} | changes)


@pytest.fixture(scope="module")
def finished(store, released, tmp_path_factory) -> Path:
    """A policy whose head reads words from a folder, and all of whose weights are its own."""
    out = tmp_path_factory.mktemp("finished") / "policy"
    finetune(tuning(store, released, out, head=Part(name="fast", options={"scale": 3.0})))
    return out


@pytest.fixture(scope="module")
def sensing(store, released, tmp_path_factory) -> Path:
    """A policy that reads proprioception, of adapters."""
    out = tmp_path_factory.mktemp("sensing") / "policy"
    finetune(tuning(store, released, out, lora=LoraConfig(rank=2), rates=Rates(backbone=1.0)))
    return out


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    return copy_of(finished, tmp_path)


def copy_of(policy: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-r", policy, tmp_path / "copied"], check=True)
    return tmp_path / "copied"


def cut(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])


def change_header(policy: Path, **changes) -> None:
    file = policy / "model.safetensors"
    save_tensors(file, read_tensors(file), read_header(file) | changes)


def seen(store: Store, **changes) -> Observation:
    images = {"front": store.frames(0, "front", [0])[0]}
    return Observation(**{"images": images, "proprioception": store.proprioception(0)[0]} | changes)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (lambda image: image.transpose(2, 0, 1), r"shows uint8 \(3, \d+, \d+\).*the channels come first, move them"),
        (lambda image: image / np.float32(255), r"shows float32 .*scale it to 0..255 and make it uint8"),
        (lambda image: np.concatenate([image, image[..., :1]], -1), r"not RGB in uint8 of \(height, width, 3\)"),
        (lambda image: image[..., 0], r"not RGB in uint8 of \(height, width, 3\)"),
        (
            lambda image: image[:, : image.shape[0] // 2],
            r"trained on \d+ x \d+; crop or pad to that shape",
        ),
    ],
)
def test_images_of_another_order_type_or_shape_are_refused_in_acting(finished, store, monkeypatch, wrong, problem):
    policy = VlaPolicy(finished)
    policy.reset("push the cube", seed=0)
    image = store.frames(0, "front", [0])[0]
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is but in tests
    with pytest.raises(ImageError, match=f"camera 'front' .*{problem}"):
        policy.act(seen(store, images={"front": wrong(image)}))
    larger = policy.act(seen(store, images={"front": image.repeat(2, 0).repeat(2, 1)}))
    assert larger.actions.shape == (3, 7)


def test_proprioception_that_is_missing_of_another_robot_or_broken_is_refused(sensing, store):
    policy = VlaPolicy(sensing)
    with pytest.raises(ObservationError, match="was given no instruction; call reset"):
        policy.act(seen(store))
    policy.reset("push the cube", seed=0)
    dims = store.info.proprioception_dims
    for values, problem in [
        (None, "was trained with proprioception, the observation has none"),
        (np.zeros(1), rf"has the shape \(1,\), the policy reads \({dims},\)"),
        (np.zeros(dims + 1), rf"has the shape \({dims + 1},\), the policy reads"),
        (np.full(dims, np.nan), "the proprioception is not finite"),
    ]:
        with pytest.raises(ObservationError, match=problem):
            policy.act(seen(store, proprioception=values))


@pytest.mark.parametrize("instruction", ["", "push " * 800])
def test_a_robot_is_not_moved_by_an_empty_or_endless_instruction(finished, instruction):
    with pytest.raises(PromptError, match=r"the instruction is empty|has 3999 characters, at most 1000 are read"):
        VlaPolicy(finished).reset(instruction, seed=0)


@pytest.mark.parametrize("number", [1, 5])  # one of training, one that is held out
@pytest.mark.parametrize(("words", "problem"), [(" . ", "is empty"), ("push " * 800, "has 3999 characters")])
def test_episodes_with_such_instructions_are_named_before_a_run_is_begun(
    released, language, tmp_path, number, words, problem
):
    wrong = [episode(each) for each in range(6)]
    wrong[number] = replace(wrong[number], instruction=words)
    store = store_of(tmp_path / "store", wrong)
    (tmp_path / "labels").mkdir()
    labels_of(store).save(tmp_path / "labels/labels.safetensors")
    for start in (
        lambda: finetune(tuning(store, released, tmp_path / "run")),
        lambda: pretrain(pretraining(store, tmp_path / "labels", language, tmp_path / "run")),
    ):
        with pytest.raises(PromptError, match=f"episode push/{number}: the instruction {problem}"):
            start()
    assert not (tmp_path / "run").exists()


def test_labels_that_are_no_codes_of_other_episodes_of_another_model_or_cut_off_are_refused(
    store, labels, language, tmp_path
):
    out, file = tmp_path / "run", labels / "labels.safetensors"
    write_json(tmp_path / "manifest.json", {"fingerprint": "another lam"})
    with pytest.raises(LabelsError, match="come from latent action model a lam, expected another lam; label the store"):
        pretrain(pretraining(store, labels, language, out, lam=str(tmp_path)))
    other = store_of(tmp_path / "other", [episode(number) for number in range(1, 4)])
    with pytest.raises(
        LabelsError, match=f"were made for episodes {store.fingerprint}, the store is {other.fingerprint}"
    ):
        pretrain(pretraining(other, labels, language, out))
    tensors = load_file(file)
    tensors["codes"][3, 1] = 4
    save_file(tensors, file, metadata={"info": json.dumps(vars(labels_of(store).info))})
    with pytest.raises(LabelsError, match=r"code indices span 0\.\.4, not 0\.\.3"):
        pretrain(pretraining(store, labels, language, out))
    cut(file)
    with pytest.raises(LabelsError, match="is not a file of latent labels, or is cut off"):
        pretrain(pretraining(store, labels, language, out))
    assert not out.exists()


def test_a_released_model_that_cannot_know_so_many_latent_tokens_is_refused(store, released, tmp_path):
    policy = PolicyConfig(path=str(released), num_codes=500, num_tokens=4, options={"knows_latents": True})
    with pytest.raises(CheckpointError, match=r"hold no 500 latent ones after the \d+ of the token"):
        finetune(tuning(store, released, tmp_path / "run", policy=policy))


def test_a_released_model_that_sees_images_otherwise_is_refused(store, tmp_path):
    prismatic(tmp_path / "released")
    file = tmp_path / "released/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_resize_strategy": "letterbox"}))
    with pytest.raises(CheckpointError, match="strategy is 'letterbox'; models of 'resize-naive' are read"):
        finetune(tuning(store, tmp_path / "released", tmp_path / "run"))


def test_models_with_a_shard_that_is_cut_off_are_named(store, labels, tmp_path):
    timm_lm(tmp_path / "language")
    text = Part(name="timm_lm", options={"weights": "random", "language": str(tmp_path / "language")})
    hub("llava", tmp_path / "hub")
    for folder in ("language", "hub"):
        cut(next((tmp_path / folder).glob("*.safetensors")))
    with pytest.raises(WeightsError, match=rf"no language model '{tmp_path}/language': .*fetch it again"):
        pretrain(pretraining(store, labels, text, tmp_path / "run"))
    with pytest.raises(WeightsError, match=rf"no vision-language model '{tmp_path}/hub': .*fetch it again"):
        finetune(tuning(store, tmp_path / "hub", tmp_path / "other_run"))


def test_a_script_says_so_in_one_sentence(store, tmp_path):
    prismatic(tmp_path / "released")
    cut(tmp_path / "released/model-00002-of-00002.safetensors")
    words = ["scripts/finetune_vla.py", "--config", "configs/vla/finetune_smoke.yaml", "--out", tmp_path / "run"]
    words += ["--policy.path", tmp_path / "released", "--data.path", store.path, "--data.views", "[front]"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "model-00002-of-00002.safetensors is not a safetensors file, or is cut off" in done.stderr.splitlines()[-1]
    assert "fetch it again" in done.stderr
    assert "Traceback" not in done.stderr


def test_adapters_whose_weights_changed_or_are_gone_do_not_act(store, language, labels, tmp_path):
    prismatic(tmp_path / "released")
    settings = {"lora": LoraConfig(rank=2), "rates": Rates(backbone=1.0)}
    finetune(tuning(store, tmp_path / "released", tmp_path / "policy", **settings))
    prismatic(tmp_path / "released")  # drawn anew
    with pytest.raises(CheckpointError, match=r"the adapters of .* belong to weights \w+, and .* gives \w+; get the"):
        VlaPolicy(tmp_path / "policy")
    pretrain(pretraining(store, labels, language, tmp_path / "pretrained"))
    finetune(tuning(store, tmp_path / "pretrained", tmp_path / "ours", **settings))
    (tmp_path / "pretrained").rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"holds adapters of the weights in .*pretrained, which is not there"):
        VlaPolicy(tmp_path / "ours")


def test_statistics_and_action_spaces_of_another_robot_are_refused(copied, store):
    header = read_header(copied / "model.safetensors")
    actions = header["statistics"]["actions"]
    fewer = {name: values[:-1] if isinstance(values, list) else values for name, values in actions.items()}
    other = {**header["action_space"], "names": ["x"], "units": ["m"], "low": None, "high": None}
    for changes, problem in [
        ({"statistics": {"actions": fewer}}, "numbers of dimensions differ: its action statistics has 6, not 7"),
        ({"action_space": other}, "numbers of dimensions differ: its action space has 1, not 7"),
    ]:
        change_header(copied, **header | changes)
        with pytest.raises(CheckpointError, match=problem):
            VlaPolicy(copied)
    change_header(copied, **header | {"statistics": {}})
    with pytest.raises(StatisticsError, match="no action statistics"):
        export(ExportConfig(policy=str(copied), out=str(copied.with_name("shared"))))
    assert not copied.with_name("shared").exists()


def test_a_policy_that_lacks_statistics_of_its_proprioception_does_not_act(sensing, tmp_path):
    copied = copy_of(sensing, tmp_path)
    statistics = read_header(copied / "model.safetensors")["statistics"]
    change_header(copied, statistics={"actions": statistics["actions"]})
    with pytest.raises(CheckpointError, match="reads proprioception and holds no statistics of it"):
        VlaPolicy(copied)


def test_actions_that_never_change_are_told_and_keep_their_value(released, tmp_path, capsys):
    def still(number: int):
        made = episode(number)
        made.actions[:, 2] = 0.05
        return made

    store = store_of(tmp_path / "store", [still(number) for number in range(6)])
    for head in ("l1_pool", "flow"):
        finetune(tuning(store, released, tmp_path / head, head=Part(name=head)))
        assert "the actions ['z'] never change in these demonstrations" in capsys.readouterr().err
        policy = VlaPolicy(tmp_path / head)
        policy.reset("push the cube", seed=0)
        np.testing.assert_allclose(policy.act(seen(store)).actions[:, 2], 0.05, atol=1e-6)


def test_an_exported_policy_that_is_incomplete_is_named(finished, store, tmp_path):
    shared = tmp_path / "shared"
    for broken, problem in [
        (lambda: cut(shared / "model.safetensors"), "is not a safetensors file, or is cut off"),
        (lambda: (shared / "backbone").rename(shared / "elsewhere"), "lacks backbone/, its configuration"),
    ]:
        export(ExportConfig(policy=str(finished), out=str(shared)))
        broken()
        with pytest.raises(CheckpointError, match=problem):
            VlaPolicy(shared)
        shared.rename(tmp_path / f"broken_{len(list(tmp_path.iterdir()))}")
    export(ExportConfig(policy=str(finished), out=str(shared)))
    cut(shared / "head/tokenizer.json")
    with pytest.raises(FastError, match=r"tokenizer.json is missing, damaged or cut off .*fetch or export it again"):
        VlaPolicy(shared)
