"""Every objective under every bottleneck learns from real rendered episodes."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from core.sampling import batch_indices, step_generator
from lam.bottlenecks.by_name import BOTTLENECKS
from lam.codebook_watch import CodebookWatch, start_codebook
from lam.config import LamConfig
from lam.model import LatentActionModel
from lam.objectives.adversary import ViewAdversary
from lam.objectives.by_name import OBJECTIVES
from lam.objectives.interface import Objective
from lam.sources import Source, open_sources
from lam.train import TrainLamConfig, make_objective, transitions_for

STEPS, BATCH = 120, 16
COMBINATIONS = [(name, bottleneck, False) for name in sorted(OBJECTIVES) for bottleneck in sorted(BOTTLENECKS)]
COMBINATIONS += [("self_cross", bottleneck, True) for bottleneck in sorted(BOTTLENECKS)]


@pytest.fixture(scope="module")
def sources(chain) -> tuple[dict, dict[str, Source]]:
    data = {"video": {"store": str(chain / "episodes"), "features": str(chain / "features")}}
    return data, open_sources(TrainLamConfig(out="unused", data=data))


def mean_loss(objective: Objective, dataset) -> float:
    """On the same transitions and draws each time, without what an adversary and the encoder pull in two directions."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    with torch.no_grad():
        terms = [objective(dataset.batch(np.arange(i, len(dataset), 4), generator)) for i in range(4)]
    contested = "camera" if isinstance(objective, ViewAdversary) else None
    return float(np.mean([part["loss"].item() - (part[contested].item() if contested else 0.0) for part in terms]))


@pytest.mark.sim
@pytest.mark.timeout(1000)
@pytest.mark.parametrize(("name", "bottleneck", "nested_dropout"), COMBINATIONS)
def test_every_objective_under_every_bottleneck_lowers_its_loss_on_rendered_episodes(
    sources, name, bottleneck, nested_dropout
):
    data, opened = sources
    model_config = LamConfig(
        network="perceptron",
        width=64,
        code_dim=16,
        bottleneck=bottleneck,
        nested_dropout=nested_dropout,
        codebook="per_token",
        normalise_encodings=True,
        predict_change=True,
    )
    pairs = 0 if name == "published" else 2
    settings = {"objective": name, "pool": 4, "model": model_config, "pairs_per_transition": pairs}
    config = TrainLamConfig(out="unused", data=data, hidden_actions=True, **settings)
    dataset = transitions_for(config, opened, "train")
    torch.manual_seed(0)
    model = LatentActionModel(model_config, dataset.dim, dataset.num_patches)
    start_codebook(model, dataset, 0)
    objective = make_objective(config, model, opened)
    watch = CodebookWatch(model, Accelerator(cpu=True), revive_every=20, steps=STEPS, seed=0)
    optimizer = torch.optim.AdamW(objective.parameters(), 2e-3)
    before = mean_loss(objective, dataset)
    for step in range(STEPS):
        indices = batch_indices(len(dataset), seed=0, step=step, batch_size=BATCH)
        terms = objective(dataset.batch(indices, step_generator(0, step)))
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        watch(step)
    assert mean_loss(objective, dataset) < 0.97 * before
