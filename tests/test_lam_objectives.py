"""Objectives: what each pays for, on which pairs of cameras, whatever cameras a transition has."""

import pytest
import torch

from lam.config import LamConfig
from lam.model import LatentActionModel
from lam.objectives.adversary import Reverse
from lam.objectives.by_name import OBJECTIVES
from lam.objectives.interface import DataFacts, Objective, Transitions
from lam.reference import all_pairs

FACTS = DataFacts(cameras=3, action_dims=3, senses=2)


def model(**changes) -> LatentActionModel:
    values = {"width": 32, "heads": 4, "encoder_blocks": 1, "decoder_blocks": 1, "code_dim": 8}
    made = LatentActionModel(LamConfig(**(values | changes)), feature_dim=12, patches=9)
    with torch.no_grad():
        made.bottleneck.revive(torch.randn(64, 4, 8), torch.Generator().manual_seed(0))
    return made


def objective(name: str, **changes) -> Objective:
    torch.manual_seed(0)
    return OBJECTIVES[name](model(**changes), FACTS)


def ragged() -> Transitions:
    """Two cameras saw the first transition, one the second, three the third; all pairs but the very last."""
    torch.manual_seed(1)
    return Transitions(
        features=torch.randn(6, 2, 9, 12),
        sample=torch.tensor([0, 0, 1, 2, 2, 2]),
        camera=torch.tensor([0, 1, 2, 0, 1, 2]),
        own=torch.arange(6),
        cross=torch.tensor([[0, 1], [1, 0], [3, 4], [4, 3], [3, 5], [5, 3], [4, 5]]),
        actions=torch.randn(3, 3),
        proprioception=torch.randn(3, 2, 2),
    )


def error(made: Objective, batch: Transitions, target: int, source: int) -> float:
    """One pair, with nothing batched."""
    encoding = made.model.encode(batch.features[source : source + 1])
    codes = made.model.quantize(encoding).codes
    predicted = made.model.decode(batch.features[target : target + 1, 0], codes)
    return (predicted - batch.features[target : target + 1, 1]).square().mean().item()


@pytest.mark.parametrize("network", ["transformer", "perceptron"])
def test_self_and_cross_are_means_over_the_pairs_there_are(network):
    made, batch = objective("self_cross", network=network).eval(), ragged()
    own = [error(made, batch, row, row) for row in range(6)]
    cross = [error(made, batch, target, source) for target, source in batch.cross.tolist()]
    terms = made.terms(batch)
    assert terms["self"].item() == pytest.approx(sum(own) / 6, rel=1e-4)
    assert terms["cross"].item() == pytest.approx(sum(cross) / 7, rel=1e-4)
    wanted = (sum(own) / 6 + sum(cross) / 7) / 2 + terms["bottleneck"].item()
    assert terms["loss"].item() == pytest.approx(wanted, rel=1e-4)


def test_the_weight_of_terms_does_not_depend_on_the_number_of_views_but_the_published_one_does():
    one = torch.randn(1, 2, 2, 9, 12)
    for name, is_equal in (("self_cross", True), ("cross", True), ("published", False)):
        made = objective(name).eval()
        two, four = (made.terms(all_pairs(one.expand(views, -1, -1, -1, -1)))["loss"].item() for views in (2, 4))
        assert (two == pytest.approx(four, rel=1e-4)) == is_equal


def test_the_control_takes_the_latent_action_of_another_transition():
    made, batch = objective("mismatched").eval(), ragged()
    two = Transitions(
        batch.features[:4],
        torch.tensor([0, 0, 1, 1]),
        torch.tensor([0, 1, 0, 1]),
        torch.arange(4),
        torch.tensor([[0, 1], [1, 0], [2, 3], [3, 2]]),
    )
    wanted = [error(made, two, target, source) for target, source in ((0, 3), (1, 2), (2, 1), (3, 0))]
    assert made.terms(two)["cross"].item() == pytest.approx(sum(wanted) / 4, rel=1e-4)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_batch_without_pairs_of_cameras_trains_all_parameters_and_stays_finite(name):
    made, batch = objective(name), ragged()
    alone = batch._replace(
        features=batch.features[:2],
        sample=torch.tensor([0, 1]),
        camera=torch.tensor([0, 1]),
        own=torch.arange(2),
        cross=torch.zeros(0, 2, dtype=torch.long),
        actions=batch.actions[:2],
        proprioception=batch.proprioception[:2],
    )
    terms = made.terms(alone)
    terms["loss"].backward()
    assert all(torch.isfinite(value) for value in terms.values())
    for parameter_name, parameter in made.named_parameters():
        assert parameter.grad is not None, f"{parameter_name}: several processes would wait for its gradient"
        assert parameter.grad.isfinite().all()


def test_consistency_is_the_distance_of_two_views_encodings_and_vanishes_for_equal_views():
    made, batch = objective("view_consistency"), ragged()
    encodings = made.model.encode(batch.features)
    wanted = [(encodings[i] - encodings[j]).square().mean().item() for i, j in batch.cross.tolist()]
    assert made.terms(batch)["distance"].item() == pytest.approx(sum(wanted) / 7, rel=1e-4)
    same = all_pairs(torch.randn(1, 3, 2, 9, 12).expand(2, -1, -1, -1, -1))
    assert made.terms(same)["distance"].item() < 1e-9


@pytest.mark.parametrize("name", ["contrastive_views", "self_cross_contrast"])
def test_contrast_is_the_surprise_at_the_other_view_among_other_transitions(name):
    made, batch = objective(name), ragged()
    points = made.model.describe(batch.features).flatten(1)
    unit = torch.cdist(points, points).square().mean()
    surprises = []
    for one, other in batch.cross.tolist():
        candidates = [other] + [row for row in range(6) if batch.sample[row] != batch.sample[one]]
        scores = torch.stack([-5 * (points[one] - points[row]).square().sum() / unit for row in candidates])
        surprises.append(-scores.log_softmax(0)[0].item())
    terms = made.terms(batch)
    assert terms["contrast"].item() == pytest.approx(sum(surprises) / 7, rel=1e-3)
    without = objective({"contrastive_views": "self", "self_cross_contrast": "self_cross"}[name])
    without.load_state_dict(made.state_dict())
    assert terms["loss"].item() - 0.05 * terms["contrast"].item() == pytest.approx(
        without.terms(batch)["loss"].item(), rel=1e-4
    )
    alike = all_pairs(torch.randn(1, 1, 2, 9, 12).expand(2, 6, -1, -1, -1))
    assert made.terms(alike)["contrast"].item() == pytest.approx(torch.tensor(11.0).log().item(), rel=1e-3)


def test_the_adversary_learns_the_camera_while_the_encoder_is_pushed_the_other_way(monkeypatch):
    values = torch.randn(3, requires_grad=True)
    (2 * Reverse.apply(values)).sum().backward()
    assert torch.equal(values.grad, torch.full((3,), -2.0))
    made, batch = objective("view_adversary"), ragged()
    made.terms(batch)["camera"].backward()
    grads = [made.classifier[-1].weight.grad.clone(), made.model.encoder.to_code.weight.grad.clone()]
    before = made.terms(batch)["camera"].item()
    with torch.no_grad():
        made.classifier[-1].weight -= 0.1 * grads[0]
        assert made.terms(batch)["camera"].item() < before
        made.classifier[-1].weight += 0.1 * grads[0]
    monkeypatch.setattr(Reverse, "apply", lambda values: values)
    made.zero_grad()
    made.terms(batch)["camera"].backward()
    torch.testing.assert_close(made.model.encoder.to_code.weight.grad, -grads[1])


def test_supervision_uses_known_actions_only_and_reconstruction_where_they_are_not_known():
    made, batch = objective("action_supervised").eval(), ragged()
    actions = batch.actions.clone()
    actions[2] = float("nan")
    terms = made.terms(batch._replace(actions=actions))
    codes = made.model.quantize(made.model.encode(batch.features)).codes.flatten(1)
    wanted = (made.probe(codes)[:3] - actions[batch.sample[:3]]).square().mean().item()
    assert terms["action"].item() == pytest.approx(wanted, rel=1e-4)
    own = [error(made, batch, row, row) for row in (3, 4, 5)]
    assert terms["self"].item() == pytest.approx(sum(own) / 3, rel=1e-4)
    assert made.terms(batch)["self"].item() == 0


def test_the_forward_model_predicts_the_change_of_the_state_where_it_is_known():
    made, batch = objective("proprioceptive_forward").eval(), ragged()
    senses = batch.proprioception.clone()
    senses[1, 0, 0] = float("nan")
    codes = made.model.quantize(made.model.encode(batch.features)).codes.flatten(1)
    rows = [0, 1, 3, 4, 5]
    first, later = senses[batch.sample[rows]].unbind(1)
    change = made.forward_model(torch.cat([codes[rows], first], dim=1))
    wanted = (change - (later - first)).square().mean().item()
    assert made.terms(batch._replace(proprioception=senses))["proprioception"].item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("network", ["transformer", "perceptron"])
def test_one_batch_can_be_overfitted(network):
    made = objective("self_cross", network=network, normalise_encodings=True, codebook="per_token")
    first = torch.randn(2, 8, 9, 12)
    batch = all_pairs(torch.stack([first, first + torch.randn(1, 8, 1, 1)], dim=2))
    with torch.no_grad():
        made.model.bottleneck.revive(made.model.encode(batch.features), torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    losses = []
    for _ in range(250):
        terms = made.terms(batch)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(terms["cross"].item())
    assert losses[-1] < 0.3 * losses[0]
