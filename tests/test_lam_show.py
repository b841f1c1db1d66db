"""The page of latents: its numbers against naive ones, what it shows, and what it refuses."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import cohen_kappa_score

from core.episode import Episode, View
from core.frames import FeatureCache
from core.run import Stage, StageError
from core.spaces import END_EFFECTOR_DELTA
from core.store import Store, StoreInfo, finish_store, write_part
from core.vision import EncoderConfig
from lam.checkpoint import LamFacts, load_lam, save_lam
from lam.config import LamConfig
from lam.model import LatentActionModel
from lam.show.agreement import agreement, agreement_of_pairs, entropy_bits
from lam.show.findings import agreement_problems, codebook_problems
from lam.show.history import perplexity, read_history
from lam.show.meanings import direction_of, meanings_of_token, meanings_of_tuples
from lam.show.nearest import distances_to_codes, mean_squared_distances, nearest_of_each, principal_plane
from lam.show.sample import Clips, Motion, ShowError, take_clips
from lam.show.stage import ShowConfig, held_out, show
from lam.show.transplant import gallery_of, of_pairs, transplants

TINY = EncoderConfig(name="vit_tiny_patch16_224", image_size=32, weights="random", dtype="float32")
OTHER = TINY.model_copy(update={"image_size": 64})
LENGTHS = (5, 6, 7, 6, 5, 6)
TOKENS, CODES = 2, 4
INSTRUCTION = "move & <push>"


def write_store(path, views=("front", "side"), with_actions=True, splits=("train", "held_out")) -> Store:
    space = END_EFFECTOR_DELTA if with_actions else None
    noise = np.random.default_rng(0)
    episodes = [
        Episode(
            episode_id=f"e{number}",
            task="t",
            instruction=INSTRUCTION,
            control_hz=5.0,
            views={view: View(frames=noise.integers(0, 256, (length, 32, 32, 3), dtype=np.uint8)) for view in views},
            actions=noise.normal(size=(length, 7)).astype(np.float32) if with_actions else None,
            action_space=space,
            is_labelled=False,
            split=splits[number % len(splits)],
        )
        for number, length in enumerate(LENGTHS)
    ]
    sizes = dict.fromkeys(views, (32, 32))
    info = StoreInfo(control_hz=5.0, views=sizes, action_space=space, proprioception_dims=0, robot_type="arm")
    write_part(path, 0, episodes, info=info)
    finish_store(path, info, 1)
    return Store.open(path)


def write_run(path, cache, bottleneck="vq", is_finished=True, **changes):
    """A run as training leaves it, its model untrained."""
    config = LamConfig(
        network="perceptron", width=16, num_tokens=TOKENS, code_dim=8, num_codes=CODES, bottleneck=bottleneck
    )
    config = config.model_copy(update={"normalise_encodings": True, "codebook": "per_token"} | changes)
    torch.manual_seed(0)
    model = LatentActionModel(config, cache.dim, cache.num_patches)
    frames = torch.from_numpy(cache.features("front", np.repeat(np.arange(6), 5), np.tile(np.arange(5), 6))).float()
    with torch.no_grad():
        model.bottleneck.revive(model.encode(torch.stack([frames[:-2], frames[2:]], 1)), torch.Generator())
    stage = Stage.open(path, "train_lam", ShowConfig(out="o", lam="l", store="s"))
    facts = LamFacts("", cache.encoder_fingerprint, cache.encoder_config, 0.4, 1)
    fingerprint = save_lam(path, config, model.state_dict(), (cache.dim, cache.num_patches), facts)
    histogram = [[5, 1, 0, 0], [2, 2, 2, 0]]
    line = {"step": 50, "code_histogram": histogram, "revived": 3.0}
    lines = [json.dumps({"step": 20, "loss": 1.0}), json.dumps(line), json.dumps(line | {"step": 100}), '{"step": 1']
    (path / "metrics.jsonl").write_text("\n".join(lines))
    if is_finished:
        stage.finish({"code_histogram": histogram} if bottleneck == "vq" else {}, fingerprint)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store") / "episodes")


@pytest.fixture(scope="module")
def cache(store, tmp_path_factory):
    return FeatureCache.build(store, TINY, tmp_path_factory.mktemp("cache") / "features")


def make_page(tmp_path, store, cache, **changes) -> str:
    run = write_run(tmp_path / "lam", cache, **changes)
    show(config_of(run, store, cache, tmp_path / "page"))
    return (tmp_path / "page" / "page.html").read_text()


def config_of(run, store, cache, out) -> ShowConfig:
    paths = {"lam": run, "store": store.path, "features": cache.directory, "out": out}
    return ShowConfig(**{name: str(path) for name, path in paths.items()}, codes=3, tuples=3, transplants=2)


@pytest.fixture(scope="module")
def page(tmp_path_factory, store, cache):
    return make_page(tmp_path_factory.mktemp("run"), store, cache)


class Page(HTMLParser):
    """Collects what a browser would fetch, open elements, identifiers and the text."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.open, self.ids, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.sources += [values[key] for key in ("src", "srcset", "poster", "data", "xlink:href") if key in values]
        self.sources += [values["href"]] if "href" in values else []
        self.ids += filter(None, [values.get("id")])
        self.open += [tag] * (tag not in {"meta", "link", "img", "br"})

    def handle_startendtag(self, tag, attributes):
        values = dict(attributes)
        self.sources += [values["xlink:href"]] if "xlink:href" in values else []
        self.ids += filter(None, [values.get("id")])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_fetches_nothing_and_is_well_formed(page):
    parsed = Page(page)
    assert parsed.open == []
    assert len(parsed.ids) == len(set(parsed.ids))
    assert parsed.sources
    assert all(source.startswith(("data:", "#")) for source in parsed.sources)
    assert not re.search(r"@import|url\((?!#)|<script", page)


def test_the_page_shows_every_part_with_its_numbers(page):
    text = Page(page).text
    assert "left out:" not in text.lower()
    clips = 2 * sum(length - 2 for length in LENGTHS[1::2])
    assert f"there are {clips} (front {clips // 2}, side {clips // 2})" in text
    assert "front and side" in text
    assert INSTRUCTION in page.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert "at 2 checks" in text
    assert "replaced 6 times" in text
    assert "on 6 held-out transitions" in text
    assert page.count("data:image/jpeg") > 2 * 3 + TOKENS * 3


def test_a_second_run_is_skipped_and_gives_the_same_page(tmp_path, store, cache, capsys):
    first = make_page(tmp_path, store, cache)
    show(config_of(tmp_path / "lam", store, cache, tmp_path / "page"))
    assert "already done" in capsys.readouterr().err
    show(config_of(tmp_path / "lam", store, cache, tmp_path / "again"))
    assert (tmp_path / "again" / "page.html").read_text() == first


def test_without_codes_the_map_and_the_transplants_remain(tmp_path, store, cache):
    text = Page(make_page(tmp_path, store, cache, bottleneck="gaussian_kl")).text
    assert text.count("gaussian_kl is continuous") == 4
    assert "Each point is one of the" in text
    assert "for scale" in text


def test_without_actions_and_a_second_camera_a_sentence_stands_in_their_place(tmp_path):
    store = write_store(tmp_path / "episodes", views=("front",), with_actions=False)
    cache = FeatureCache.build(store, TINY, tmp_path / "features")
    text = Page(make_page(tmp_path, store, cache)).text
    assert "The map by direction is left out: these episodes have no actions." in text
    assert "none of these held-out transitions was seen by two cameras" in text
    assert "robot was told to go" not in text


def test_a_run_without_a_log_of_its_codebook_says_so(tmp_path, store, cache):
    run = write_run(tmp_path / "lam", cache)
    (run / "metrics.jsonl").unlink()
    show(config_of(run, store, cache, tmp_path / "page"))
    assert "metrics.jsonl holds no code_histogram" in (tmp_path / "page/page.html").read_text()


def test_what_does_not_fit_together_ends_in_a_sentence(tmp_path, store, cache):
    other = FeatureCache.build(store, OTHER, tmp_path / "other")
    run = write_run(tmp_path / "lam", cache)
    with pytest.raises(ShowError, match="cache them again with the model's encoder"):
        show(config_of(run, store, other, tmp_path / "page"))
    unfinished = write_run(tmp_path / "unfinished", cache, is_finished=False)
    with pytest.raises(StageError, match="did not finish; run its command again"):
        show(config_of(unfinished, store, cache, tmp_path / "page"))
    no_split = write_store(tmp_path / "episodes", splits=("train",))
    features = FeatureCache.build(no_split, TINY, tmp_path / "features")
    with pytest.raises(ShowError, match="has no held_out episodes"):
        show(config_of(run, no_split, features, tmp_path / "page"))
    pooled = FeatureCache.build(store, TINY, tmp_path / "pooled", pool=2)
    with pytest.raises(ShowError, match=r"features of 1 patches x 192 channels .* model takes 4 x 192"):
        show(config_of(run, store, pooled, tmp_path / "page"))
    assert not (tmp_path / "page").exists()


def test_kappa_agrees_with_a_library_and_is_zero_for_cameras_that_ignore_the_transition():
    rng = np.random.default_rng(0)
    episodes = np.repeat(np.arange(100), 20)
    first, other = rng.choice(4, p=[0.7, 0.1, 0.1, 0.1], size=(2, 2000))
    second = np.where(rng.random(2000) < 0.4, first, other)
    found = agreement(first, second, episodes)
    assert found.share == pytest.approx((first == second).mean())
    assert found.kappa == pytest.approx(cohen_kappa_score(first, second))
    assert found.kappa95.low < 0.4 < found.kappa95.high
    assert (found.transitions, found.episodes, found.is_above_chance) == (2000, 100, True)
    independent = agreement(first, other, episodes)
    assert independent.share > 0.45
    assert abs(independent.kappa) < 0.05
    assert not independent.is_above_chance


def test_intervals_count_episodes_not_transitions():
    codes = np.repeat(np.random.default_rng(0).integers(4, size=(2, 30)), 50, axis=1)
    by_episode = agreement(*codes, np.repeat(np.arange(30), 50))
    by_transition = agreement(*codes, np.arange(1500))
    assert np.ptp(by_episode.share95) > 4 * np.ptp(by_transition.share95)
    single = agreement(*codes, np.zeros(1500, int))
    assert np.isnan(single.share95.low)
    assert not single.is_above_chance


def test_collapsed_codes_agree_always_and_that_counts_for_nothing():
    found = agreement(np.zeros(50, int), np.zeros(50, int), np.arange(50))
    assert (found.share, found.chance, found.entropy_bits) == (1.0, 1.0, (0.0, 0.0))
    assert np.isnan(found.kappa)
    assert not found.is_above_chance


def test_pairs_of_cameras_are_compared_on_the_transitions_that_both_saw():
    indices = np.array([[0, 1], [0, 2], [3, 3], [1, 1], [1, 2], [2, 2]])
    transitions, cameras = np.array([5, 5, 5, 6, 6, 7]), np.array([0, 1, 2, 0, 1, 1])
    pairs = list(agreement_of_pairs(indices, transitions, cameras, transitions, ["a", "b", "c", "d"]))
    assert [(pair.first, pair.second) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    shares = [one.share for one in pairs[0].tokens]
    assert (shares, pairs[0].all_tokens.share, pairs[0].all_tokens.transitions) == ([1.0, 0.0], 0.0, 2)
    problems = agreement_problems(pairs)
    assert "a and b are not shown to agree better than chance on token 1" in problems[0]


def test_entropy_and_perplexity_have_their_closed_forms():
    assert entropy_bits(np.array([3, 3, 3, 3])) == pytest.approx(2)
    assert entropy_bits(np.array([7, 0])) == 0
    np.testing.assert_allclose(perplexity(np.array([[1, 1, 1, 1], [9, 0, 0, 0], [5, 5, 0, 0]])), [4, 1, 2])


def test_a_collapsed_token_comes_first_among_the_problems():
    problems = codebook_problems(np.array([9.0, 1.2]), [16, 2], 16, 300)
    assert "token 1: 1.20" in problems[0]
    assert problems[1] == "Codes that none of the 300 held-out clips use: token 1: 14 of 16."
    assert codebook_problems(np.array([9.0, 12.0]), [16, 16], 16, 300) == []


def test_the_nearest_are_at_most_one_an_episode_and_in_order():
    distances, groups = np.array([0.3, 0.1, 0.2, 0.5, 0.4]), np.array([0, 0, 1, 2, 1])
    assert nearest_of_each(distances, groups, 2).tolist() == [1, 2]
    assert nearest_of_each(distances, groups, 9).tolist() == [1, 2, 3]


def test_distances_to_codes_are_those_to_the_code_or_to_the_mean_of_its_encodings():
    rng = np.random.default_rng(0)
    encodings, codes, indices = rng.normal(size=(20, 2, 3)), rng.normal(size=(20, 2, 3)), rng.integers(3, size=(20, 2))
    found = distances_to_codes(encodings, codes, indices, codes_are_encodings=True)
    assert found[4, 1] == pytest.approx(np.sqrt(((encodings[4, 1] - codes[4, 1]) ** 2).sum()))
    found = distances_to_codes(encodings, codes, indices, codes_are_encodings=False)
    mean = np.mean([encodings[row, 1] for row in range(20) if indices[row, 1] == indices[4, 1]], axis=0)
    assert found[4, 1] == pytest.approx(np.sqrt(((encodings[4, 1] - mean) ** 2).sum()))


def test_frame_distances_are_mean_squared_differences():
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(5, 1, (3, 4, 6)).astype(np.float32), rng.normal(5, 1, (150, 4, 6)).astype(np.float16)
    naive = [[np.square(query - frame.astype(np.float64)).mean() for frame in gallery] for query in queries]
    np.testing.assert_allclose(mean_squared_distances(queries, gallery), naive, rtol=1e-4, atol=1e-5)


def test_the_plane_is_that_of_principal_components():
    values = np.random.default_rng(0).normal(size=(40, 5)) * [5, 3, 1, 1, 1] + 7
    found, expected = principal_plane(values), PCA(2).fit(values)
    np.testing.assert_allclose(found.explained, expected.explained_variance_ratio_)
    np.testing.assert_allclose(np.abs(found.points), np.abs(expected.transform(values)), atol=1e-9)
    assert principal_plane(np.ones((3, 1))).points.tolist() == [[0, 0]] * 3


def test_codes_of_most_episodes_come_first_and_the_rest_is_counted():
    indices = np.array([[0, 0]] * 5 + [[1, 2]] * 3 + [[3, 3]] * 2)
    episodes = np.array([7] * 5 + [1, 2, 3] + [1, 2])
    nothing = np.zeros(10)
    clips = Clips(None, nothing, nothing, episodes, nothing, nothing, nothing, indices, nothing)
    distances = np.arange(20.0)[::-1].reshape(10, 2)
    found, left = meanings_of_tuples(clips, distances, None, most=2, examples=2)
    assert [(one.codes, one.uses, one.episodes) for one in found] == [((1, 2), 3, 3), ((3, 3), 2, 2)]
    assert left == 1
    assert found[0].examples.tolist() == [7, 6]
    found, left = meanings_of_token(clips, distances, 1, None, most=5, examples=2)
    assert [one.codes for one in found] == [(2,), (3,), (0,)]
    assert (left, found[2].examples.tolist()) == (0, [4])


def test_a_direction_is_steady_where_all_go_one_way_and_leaves_little_motion_out():
    xy = np.array([[1.0, 0], [3.0, 0], [0, 1.0], [0, -1.0], [0, 0.001]])
    motion = Motion(xy, np.array([True, True, True, True, False]), "m")
    assert direction_of(motion, np.array([0, 1])) == ((2.0, 0.0), 1.0, 2)
    assert direction_of(motion, np.array([2, 3, 4])) == ((0.0, 0.0), 0.0, 2)
    assert direction_of(motion, np.array([4])).moving == 0


def test_the_history_is_read_up_to_a_line_that_was_cut_off(tmp_path, cache):
    history = read_history(write_run(tmp_path / "lam", cache))
    assert history.steps.tolist() == [50, 100]
    assert history.counts.shape == (2, TOKENS, CODES)
    assert history.revived.tolist() == [3, 3]
    np.testing.assert_allclose(history.shares[0, 0], [5 / 6, 1 / 6, 0, 0])
    assert read_history(tmp_path) is None


def test_a_transplant_shows_the_nearest_frame_but_its_own_start_and_the_donors_episode(tmp_path, store, cache):
    run = write_run(tmp_path / "lam", cache, predict_change=True)
    model, facts = load_lam(run)
    clips = take_clips(model, held_out(config_of(run, store, cache, tmp_path), store, cache, model, facts), 50, 0)
    model.decoder.requires_grad_(False)
    for weights in model.decoder.parameters():
        weights.mul_(0.01)
    found, searched = transplants(model, clips, 1000, seed=0)
    assert searched == 2 * sum(LENGTHS[1::2])
    assert len(found) == 2 * 3
    for one in found:
        first = clips.features(np.array([one.receiver]))[0, 0].astype(np.float32)
        code = torch.from_numpy(clips.codes[[one.donor]])
        result = model.decode(torch.from_numpy(first)[None], code)[0].numpy()
        camera = clips.dataset.views[clips.cameras[one.receiver]]
        start = (int(clips.episodes[one.receiver]), int(clips.frames[one.receiver]))
        choices = {}
        for record in store.select(split="held_out"):
            for frame in range(record.length):
                if record.index != clips.episodes[one.donor] and (record.index, frame) != start:
                    features = cache.features(camera, np.array([record.index]), np.array([frame]))[0]
                    choices[record.index, frame] = np.square(features - result).mean()
        assert one.nearest == min(choices, key=choices.get)
        assert one.distance == pytest.approx(choices[one.nearest], rel=1e-3)
        assert one.own_distance == pytest.approx(np.square(first - result).mean(), rel=1e-3)
        assert one.own_distance < 0.1 * one.distance
        assert not one.is_moved
        assert clips.cameras[one.donor] == clips.cameras[one.receiver]


def test_what_ends_like_the_donor_is_shown_by_another_episode_and_called_a_copy(tmp_path, store, cache):
    run = write_run(tmp_path / "lam", cache, predict_change=True)
    model, facts = load_lam(run)
    clips = take_clips(model, held_out(config_of(run, store, cache, tmp_path), store, cache, model, facts), 50, 0)
    model.decoder.requires_grad_(False)
    for weights in model.decoder.parameters():
        weights.mul_(0)
    rows = np.flatnonzero((clips.cameras == 0) & (clips.frames >= clips.gap))
    earlier = np.array([np.flatnonzero(clips.transitions == clips.transitions[r] - clips.gap)[0] for r in rows])
    gallery = gallery_of(clips, 0, 1000, clips.episodes[rows])
    found = of_pairs(model, clips, np.stack([earlier, rows], axis=1), gallery)
    assert len(found) > 5
    for one in found:
        assert one.nearest[0] != clips.episodes[one.donor]
        assert one.donor_distance == pytest.approx(0, abs=1e-6)
        assert one._replace(own_distance=1.0).is_copy


def test_the_manifest_holds_what_the_page_rests_on(tmp_path, store, cache):
    make_page(tmp_path, store, cache)
    summary = json.loads((tmp_path / "page/manifest.json").read_text())["summary"]
    assert summary["transitions"] * 2 == summary["clips"]
    assert summary["episodes"] == 3
