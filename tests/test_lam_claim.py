"""The claim: runs are paired and kept, numbers are what they are called, the conclusion follows from the intervals."""

import json
from pathlib import Path

import numpy as np
import pytest

from core.config import ConfigError, load_config
from core.episode import Episode, View
from core.frames import FeatureCache
from core.spaces import END_EFFECTOR_DELTA
from core.store import ColumnInfo, Store, StoreInfo, finish_store, write_part
from core.vision import EncoderConfig
from lam.audit.views import view_agreement, view_entropy_bits
from lam.claim.conclusion import conclusion
from lam.claim.design import compare_designs, sentences
from lam.claim.effects import Results, contrasts, interaction
from lam.claim.measures import Bench, measure
from lam.claim.page import PAIRS, decisive_interactions, settle
from lam.claim.settings import ClaimConfig, read_records, runs_of, train_config
from lam.claim.train import ClaimError

VIEWS = ("random_1", "random_2", "random_3", "random_4")
FRAMES, SIZE = 6, 32
ARMS = {"untrained": {"objective": "self"}, "self": {"objective": "self"}, "self_cross": {"objective": "self_cross"}}
BASE = """
gap_s: 0.2
data: {video: {store: "", views: [random_1, random_2]}}
model: {network: perceptron, patch_width: 12, width: 16, code_dim: 8, bottleneck: vq_ema, codebook: per_token}
training: {steps: 3, batch_size: 8, warmup_steps: 1}
"""


def picture(place, camera):
    """A bright square where the hand is, mirrored in every second camera."""
    frame = np.full((SIZE, SIZE, 3), 30 + 20 * camera, np.uint8)
    column, row = np.clip(place * 8 + 12, 0, SIZE - 8).astype(int)
    column = SIZE - 8 - column if camera % 2 else column
    frame[row : row + 8, column : column + 8] = 250
    return frame


def episode(number, shake_m):
    rng = np.random.default_rng(number)
    steps = rng.uniform(-1, 1, (FRAMES, 2))
    hand = np.cumsum(np.concatenate([np.zeros((1, 2)), steps[:-1]]), axis=0)
    eyes = rng.normal(size=(len(VIEWS), 1, 3)) + shake_m * rng.uniform(-1, 1, (len(VIEWS), FRAMES, 3))
    extrinsics = np.concatenate([np.broadcast_to(np.eye(3), (*eyes.shape[:2], 3, 3)), -eyes[..., None]], axis=3)
    return Episode(
        episode_id=f"e{number}",
        task="t",
        instruction="move",
        control_hz=5.0,
        views={
            name: View(
                frames=np.stack([picture(place, camera) for place in hand]),
                extrinsics=extrinsics[camera].astype(np.float32),
            )
            for camera, name in enumerate(VIEWS)
        },
        actions=np.concatenate([steps, np.zeros((FRAMES, 5))], axis=1).astype(np.float32),
        action_space=END_EFFECTOR_DELTA,
        proprioception=np.concatenate([hand, np.zeros((FRAMES, 7))], axis=1).astype(np.float32),
        columns={"brightness": np.ones((FRAMES, 1), np.float32)},
        is_labelled=False,
        split="held_out" if number % 2 else "train",
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two conditions: cameras that stand still, and cameras that shake."""
    folder = tmp_path_factory.mktemp("claim")
    info = StoreInfo(
        control_hz=5.0,
        views=dict.fromkeys(VIEWS, (SIZE, SIZE)),
        action_space=END_EFFECTOR_DELTA,
        proprioception_dims=9,
        robot_type="dot",
        columns={"brightness": ColumnInfo("float32", (1,))},
    )
    for condition, shake_m in (("N2", 0.1), ("N3", 0.0)):
        path = folder / condition / "episodes"
        write_part(path, 0, (episode(number, shake_m) for number in range(24)), info=info)
        finish_store(path, info, 1)
        encoder = EncoderConfig(name="pixels_patch16", image_size=SIZE, dtype="float32")
        FeatureCache.build(Store.open(path), encoder, folder / condition / "features", components=8)
    return folder


@pytest.fixture
def config(data, tmp_path) -> ClaimConfig:
    (tmp_path / "base.yaml").write_text(BASE)
    values = {"conditions": ["N2", "N3"], "arms": ARMS, "seeds": 2, "workers": 1, "action_dims": ["x", "y"]}
    places = {"out": tmp_path / "out", "data": data, "runs": tmp_path / "runs", "base": tmp_path / "base.yaml"}
    return load_config(ClaimConfig, overrides=values | {name: str(path) for name, path in places.items()})


def test_every_arm_has_the_same_seeds_and_further_arms_their_own_conditions(config):
    wider = config.model_copy(
        update={"more_arms": {"cross": {"objective": "cross"}}, "more_conditions": ("N3",), "sweep_seeds": 1}
        | {"sweep": {"shared codebook": {"model.codebook": "shared"}}}
    )
    runs = runs_of(wider)
    main = [run for run in runs if run.setting == "main"]
    assert len(main) == 2 * 2 * 3 + 2
    assert {(run.condition, run.seed) for run in main if run.arm == "cross"} == {("N3", 0), ("N3", 1)}
    sweep = [run for run in runs if run.setting != "main"]
    assert [(run.arm, run.config["model.codebook"]) for run in sweep] == [("self", "shared"), ("self_cross", "shared")]
    assert len({run.key for run in runs}) == len(runs)
    weight = wider.model_copy(update={"sweep": {"cross weight 4": {"cross_weight": 4.0}}})
    assert [run.arm for run in runs_of(weight) if run.setting != "main"] == ["self_cross"]
    only = wider.model_copy(update={"only_arms": ("self", "cross")})
    assert {run.arm for run in runs_of(only) if run.setting == "main"} == {"self", "cross"}
    with pytest.raises(ConfigError, match="only_arms needs self, which the others are compared with"):
        load_config(ClaimConfig, overrides=config.model_dump() | {"only_arms": ["self_cross"]})
    with pytest.raises(ConfigError, match="the claim is about self_cross"):
        settle(config.model_copy(update={"only_arms": ("self",)}))


def test_a_run_differs_from_the_base_by_its_arm_and_seed_and_its_key_by_its_settings(config):
    run = next(run for run in runs_of(config) if run.arm == "self" and run.seed == 1)
    trained = train_config(config, run)
    assert (trained.objective, trained.training.seed, trained.training.steps) == ("self", 1, 3)
    other = run._replace(config={"objective": "cross"})
    assert other.key != run.key
    assert train_config(config, other).out != trained.out
    with pytest.raises(ConfigError, match="objectiv"):
        train_config(config, run._replace(config={"objectiv": "self"}))
    with pytest.raises(ConfigError, match="none of the arms"):
        load_config(ClaimConfig, overrides=config.model_dump() | {"only_arms": ["slef"]})


def test_a_second_call_trains_nothing_and_a_half_written_line_costs_one_run(config):
    settle(config)
    file = Path(config.out) / "results.jsonl"
    lines = file.read_text().splitlines()
    assert len(lines) == 2 * 2 * 3
    assert {name for name in ("README.md", "effects.png", "arms.png", "effects.json")} <= {
        path.name for path in Path(config.out).iterdir()
    }
    text = (Path(config.out) / "README.md").read_text()
    assert "decisive interaction" in text
    assert "2 paired seeds, 12 held-out episodes" in text
    file.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:40])
    settle(config)
    records = read_records(file)
    assert len(records) == len(lines)
    again, first = records[json.loads(lines[-1])["key"]], json.loads(lines[-1])
    assert {name: value for name, value in again.items() if name != "seconds"} == {
        name: value for name, value in first.items() if name != "seconds"
    }
    others = [record | {"origin": "elsewhere"} for record in records.values()]
    file.write_text("".join(json.dumps(record) + "\n" for record in others))
    with pytest.raises(ClaimError, match=r"other episodes, features or .*base.yaml under N2; give another --out"):
        settle(config)
    effects = json.loads((Path(config.out) / "effects.json").read_text())
    assert {c["condition"] for c in effects["contrasts"]} == {"N2", "N3"}


def test_designs_are_compared_with_their_baseline_from_the_same_runs(config):
    compare_designs(config.model_copy(update={"conditions": ("N3",)}))
    text = (Path(config.out) / "README.md").read_text()
    assert "## Every design against self" in text
    assert "**self + cross (the claim)**: more bits about the action than self under" in text
    assert "**self**:" not in text
    assert len(read_records(Path(config.out) / "results.jsonl")) == 2 * 3


def test_camera_motion_is_known_where_cameras_shake_and_what_never_changes_is_no_nuisance(data):
    shaking, still = (Bench(data / name, VIEWS, 0.2) for name in ("N2", "N3"))
    assert set(shaking.nuisances) == {"camera_motion"}
    assert still.nuisances == {}
    row = 7
    pose = shaking.store.extrinsics(int(shaking.sample.episodes[row]), VIEWS[int(shaking.sample.views[row])])
    eyes = -pose[:, :, 3]
    frame = int(shaking.sample.dataset.locate(shaking.sample.indices)[1][row])
    np.testing.assert_allclose(shaking.nuisances["camera_motion"][row], eyes[frame + 1] - eyes[frame], atol=1e-6)


def test_codes_of_the_action_have_its_bits_and_none_of_the_camera(data):
    bench = Bench(data / "N2", VIEWS, 0.2)
    actions = bench.sample.actions[:, :1]
    codes = np.clip((actions + 1) * 2, 0, 3).astype(np.int64)
    found = measure(codes, 4, bench)
    assert found["action_bits"] > 0.7
    assert found["view_bits"] == pytest.approx(0.0)
    assert found["kappa"] == 1.0
    assert abs(found["camera_motion_bits"]) < 0.05
    assert np.mean(found["per_episode"]["action_bits"]) == pytest.approx(found["action_bits"], abs=1e-3)
    camera = bench.sample.views[:, None].astype(np.int64)
    found = measure(camera, 4, bench)
    assert abs(found["action_bits"]) < 0.05
    assert found["view_bits"] == pytest.approx(2.0 + 3 / (8 * np.log(2)))
    assert found["agreement"] == 0.0
    assert found["joint_view_bits"] == 2.0


def test_view_entropy_and_agreement_of_known_codes():
    same = np.zeros((3, 2, 1), np.int64)
    same[1] = 1
    np.testing.assert_allclose(view_entropy_bits(same), 0.0)
    assert view_agreement(same) == (1.0, 1.0)
    differ = np.array([[[0], [1]], [[1], [0]]])
    np.testing.assert_allclose(view_entropy_bits(differ), 1 + 1 / (4 * np.log(2)))
    assert view_agreement(differ) == (0.0, -1.0)
    agreement, kappa = view_agreement(np.zeros((3, 2, 1), np.int64))
    assert (agreement, np.isnan(kappa)) == (1.0, True)
    with pytest.raises(ValueError, match="at least 2"):
        view_entropy_bits(np.zeros((3, 1, 2), np.int64))


def made_up(effects, seeds=10, episodes=30):
    """Records whose arms differ by known amounts from self: {(condition, arm): (action bits, view bits)}."""
    rng = np.random.default_rng(0)
    base = {c: rng.normal(0.5, 0.1, episodes) for c in ("N2", "N3")}
    records = []
    for (condition, arm), (action, view) in ({(c, "self"): (0.0, 0.0) for c in base} | effects).items():
        for seed in range(seeds):
            noise = 0.01 * np.random.default_rng([seed, len(arm)]).normal(size=episodes)
            per_episode = {"action_bits": (base[condition] + action + noise).tolist()}
            per_episode["view_bits"] = (base[condition] + view + noise).tolist()
            names = {"condition": condition, "setting": "main", "arm": arm, "seed": seed}
            records.append(names | {"per_episode": per_episode, "action_bits": np.mean(per_episode["action_bits"])})
    return Results(records)


def test_effects_and_the_conclusion_follow_the_intervals():
    results = made_up(
        {("N2", "self_cross"): (0.2, -0.3), ("N3", "self_cross"): (0.1, 0.0)}
        | {("N2", "mismatched"): (0.0, 0.0), ("N3", "mismatched"): (0.1, 0.0)}
    )
    found = contrasts(results, PAIRS)
    gain = next(c for c in found if (c.condition, c.measure, c.baseline) == ("N2", "action_bits", "self"))
    assert gain.effect.mean == pytest.approx(0.2, abs=0.02)
    assert gain.effect.p_permutation == pytest.approx(2 / 1024)
    assert gain.p_holm == pytest.approx(4 / 1024)
    decisive = decisive_interactions(results)
    assert decisive["action_bits over self"].mean == pytest.approx(0.1, abs=0.02)
    said = sentences(results, found, {"N2": 9.0, "N3": 0.0}, "self")
    assert "under N2, N3, fewer under none (95 % intervals that exclude zero); more than the frozen" in said[0]
    assert said[0].endswith("under N3.")
    text = conclusion(results, found, [], decisive)
    assert "more bits about the action under all 2 and fewer under none" in text
    assert "under N2; **the claim holds there and fails under N3**" in text
    assert "of the gain by itself: N2 -0%, N3 1" in text
    assert "its interval lies above zero under N3." in text
    assert "than those of self under N2, in a way that the control does not share under N2." in text
    assert "as an action-centric effect predicts" in text


def test_nothing_is_said_of_a_control_that_never_ran_and_others_are_set_beside_the_gain():
    results = made_up(
        {("N2", "self_cross"): (0.2, 0.0), ("N3", "self_cross"): (0.1, 0.0), ("N2", "augmented"): (0.1, 0.0)}
    )
    rest = contrasts(results, [("augmented", "self")])
    text = conclusion(results, contrasts(results, PAIRS), rest, decisive_interactions(results))
    assert "control" not in text
    assert "reach, of the gain: an augmented copy of the *same* camera as the second view N2 5" in text


def test_an_interaction_is_of_the_seeds_that_all_four_have():
    names = [(c, a) for c in ("N2", "N3") for a in ("self", "self_cross")]
    records = [
        {"condition": c, "setting": "main", "arm": arm, "seed": seed, "action_bits": 0.0}
        | {"per_episode": {"action_bits": [10.0**seed * (arm == "self_cross")] * 3}}
        for c, arm in names
        for seed in ((0, 1, 3) if c == "N2" else (0, 1, 2))
    ]
    found = interaction(Results(records), "N2", "N3", "self_cross", "self", "action_bits")
    assert (found.seeds, found.mean) == (2, 0.0)


def test_without_an_effect_the_conclusion_says_so():
    results = made_up({(c, arm): (0.0, 0.0) for c in ("N2", "N3") for arm in ("self_cross", "mismatched")})
    text = conclusion(results, contrasts(results, PAIRS), [], decisive_interactions(results))
    assert "under none and fewer under none" in text
    assert "is not borne out" in text
    assert "by itself" not in text
    assert "fails under all 2" in text
    assert interaction(results, "N2", "N9", "self_cross", "self", "action_bits") is None
