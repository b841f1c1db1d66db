"""Settings of the training loop that a run's curve does not show."""

import pytest
from torch import nn

from core.config import load_config
from core.training import TrainingConfig, _groups


@pytest.mark.parametrize(("optimizer", "of_biases"), [("adamw", 0.0), ("adam", 0.3)])
def test_decoupled_decay_spares_vectors_and_the_published_one_spares_nothing(optimizer, of_biases):
    groups = _groups(nn.Linear(3, 2), TrainingConfig(optimizer=optimizer, weight_decay=0.3), lambda name: 1.0)
    decay = {parameter.ndim: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert decay == {2: 0.3, 1: of_biases}


def test_no_means_no_also_where_yaml_reads_it_as_false(tmp_path):
    (tmp_path / "some.yaml").write_text("mixed_precision: no\n")
    assert load_config(TrainingConfig, tmp_path / "some.yaml").mixed_precision == "no"
