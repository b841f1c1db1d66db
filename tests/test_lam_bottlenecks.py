"""Bottlenecks: what passes, what it costs, which codes it is called by, and codebooks that stay alive."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from lam.bottlenecks.by_name import BOTTLENECKS
from lam.bottlenecks.gaussian_kl import GaussianBottleneck
from lam.bottlenecks.interface import NoCodesError, codebook_health
from lam.bottlenecks.nested_dropout import drop_later_tokens, keep_first
from lam.bottlenecks.vq import VectorQuantizer
from lam.bottlenecks.vq_ema import EmaVectorQuantizer
from lam.codebook_watch import CodebookWatch
from lam.config import LamConfig
from lam.model import LatentActionModel

DISCRETE = ("vq", "vq_ema", "fsq")


def bottleneck(name: str, **changes):
    torch.manual_seed(0)
    made = BOTTLENECKS[name](LamConfig(code_dim=8, bottleneck=name, **changes))
    made.revive(torch.randn(200, 4, 8), torch.Generator().manual_seed(0))
    return made


@pytest.mark.parametrize("codebook", ["shared", "per_token"])
@pytest.mark.parametrize("name", DISCRETE)
def test_indices_name_the_codes_that_pass_and_are_counted_in_training_only(name, codebook):
    made = bottleneck(name, codebook=codebook)
    encodings = torch.randn(50, 4, 8)
    made.eval()
    answer = made(encodings)
    assert answer.codes.shape == encodings.shape
    assert answer.indices.dtype == torch.long
    assert 0 <= answer.indices.min() <= answer.indices.max() < 16
    torch.testing.assert_close(made.look_up(answer.indices), answer.codes, atol=1e-5, rtol=1e-4)
    assert not made.counts.any()
    made.train()
    indices = made(encodings).indices
    wanted = torch.stack([torch.bincount(column, minlength=16) for column in indices.T])
    assert torch.equal(made.counts, wanted)
    assert made.counts.dtype == torch.long, "float counts would be rounded in bfloat16"


@pytest.mark.parametrize("name", sorted(BOTTLENECKS))
def test_gradients_reach_the_encodings_and_every_parameter(name):
    made = bottleneck(name).train()
    encodings = torch.randn(16, 4, 8, requires_grad=True)
    answer = made(encodings)
    (answer.codes.square().mean() + answer.loss).backward()
    assert encodings.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in made.parameters())


@pytest.mark.parametrize("name", ["gaussian_kl", "none"])
def test_continuous_bottlenecks_have_no_codes_and_say_so(name):
    made = bottleneck(name)
    assert made(torch.randn(3, 4, 8)).indices is None
    with pytest.raises(NoCodesError, match="choose bottleneck vq, vq_ema or fsq"):
        made.look_up(torch.zeros(1, 4, dtype=torch.long))
    config = LamConfig(width=16, heads=2, encoder_blocks=1, decoder_blocks=1, code_dim=8, bottleneck=name)
    with pytest.raises(NoCodesError, match=f"bottleneck {name} has no code indices"):
        LatentActionModel(config, 12, 9).eval().label(torch.randn(1, 2, 9, 12))


def test_the_gaussian_costs_its_divergence_and_is_its_mean_outside_training():
    made = GaussianBottleneck(dim=8, num_tokens=4, kl_weight=0.5)
    encodings = torch.randn(5, 4, 8)
    mean, log_variance = made.moments(encodings).chunk(2, dim=-1)
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).mean()
    assert made(encodings).loss.item() == pytest.approx(0.5 * divergence.item(), rel=1e-4)
    assert not torch.equal(made(encodings).codes, made(encodings).codes)
    torch.testing.assert_close(made.eval()(encodings).codes, mean)


def test_averaged_codes_move_towards_their_encodings_and_the_gradient_learns_none_of_it():
    made = EmaVectorQuantizer(num_codes=2, dim=3, num_tokens=1, beta=0.25, is_shared=True, decay=0.5).train()
    made.revive(torch.tensor([[[5.0, 5, 5]], [[-5.0, -5, -5]]]).repeat(50, 1, 1), torch.Generator().manual_seed(1))
    assert not list(made.parameters())
    seen = torch.tensor([[[6.0, 6, 6]], [[-7.0, -7, -7]]]).repeat(8, 1, 1)
    for _ in range(30):
        made(seen)
    codes = sorted(made._books[0].mean(-1).tolist())
    assert codes == pytest.approx([-7, 6], abs=0.05)


def test_levels_make_as_many_codes_as_are_stated():
    assert BOTTLENECKS["fsq"](LamConfig(bottleneck="fsq", levels=(5, 3), num_codes=15, code_dim=8)).num_codes == 15
    with pytest.raises(ValueError, match=r"levels \(5, 3\) make 15 codes, num_codes is 16"):
        LamConfig(bottleneck="fsq", levels=(5, 3))


def test_nested_dropout_keeps_the_first_tokens_of_each_row_and_all_counts_are_as_likely():
    codes = torch.ones(4000, 4, 2)
    kept = drop_later_tokens(codes)[..., 0]
    assert (kept.diff(dim=1) <= 0).all()
    shares = kept.sum(1).long().bincount(minlength=5)[1:] / 4000
    torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.03, rtol=0)
    assert keep_first(codes[:1], 3)[0, :, 0].tolist() == [1, 1, 1, 0]


def test_nested_dropout_is_for_training_only():
    config = LamConfig(width=16, heads=2, encoder_blocks=1, decoder_blocks=1, code_dim=8, nested_dropout=True)
    model = LatentActionModel(config, 12, 9)
    encodings = torch.randn(64, 4, 8)
    assert (model.train().quantize(encodings).codes == 0).all(-1).any()
    assert not (model.eval().quantize(encodings).codes == 0).all(-1).any()


@pytest.mark.parametrize("is_shared", [True, False])
def test_the_quantizer_agrees_with_a_naive_loop(is_shared):
    torch.manual_seed(0)
    quantizer = VectorQuantizer(num_codes=5, dim=3, num_tokens=4, beta=0.25, is_shared=is_shared)
    torch.nn.init.normal_(quantizer.codebook)
    encodings = torch.randn(7, 4, 3)
    answer = quantizer(encodings)
    total = 0.0
    for b in range(7):
        for t in range(4):
            book = quantizer.codebook[0 if is_shared else t]
            distances = [float(((encodings[b, t] - code) ** 2).sum()) for code in book]
            best = distances.index(min(distances))
            assert answer.indices[b, t] == best
            torch.testing.assert_close(answer.codes[b, t], book[best].detach(), atol=1e-6, rtol=0)
            total += min(distances) / 3
    assert answer.loss.item() == pytest.approx(1.25 * total / 28, rel=1e-5)
    assert quantizer.counts.sum() == 28


def test_gradients_pass_straight_through_the_quantizer():
    quantizer = VectorQuantizer(num_codes=5, dim=3, num_tokens=2, beta=0.0, is_shared=True)
    encodings = torch.randn(4, 2, 3, requires_grad=True)
    (2 * quantizer(encodings).codes).sum().backward()
    torch.testing.assert_close(encodings.grad, torch.full_like(encodings, 2.0))


@pytest.mark.parametrize("is_shared", [True, False])
def test_dead_codes_are_replaced_by_encodings_and_live_ones_stay(is_shared):
    quantizer = VectorQuantizer(num_codes=4, dim=3, num_tokens=2, beta=0.25, is_shared=is_shared)
    quantizer.counts[:] = torch.tensor([10, 10, 10, 0])
    before = quantizer.codebook.detach().clone()
    encodings = torch.randn(50, 2, 3) + 100
    assert quantizer.revive(encodings, torch.Generator().manual_seed(0)) == (1 if is_shared else 2)
    assert torch.equal(quantizer.codebook[:, :3], before[:, :3])
    assert (quantizer.codebook[:, 3] > 50).all()
    assert not quantizer.counts.any()


def test_perplexity_is_that_of_the_counts():
    even = codebook_health(torch.full((4, 16), 3))
    assert even["perplexity"] == pytest.approx(16)
    one = codebook_health(torch.nn.functional.one_hot(torch.zeros(4, dtype=torch.long), 16))
    assert one["perplexity"] == pytest.approx(1)
    assert one["usage"] == pytest.approx(1 / 16)


def test_a_collapsed_codebook_is_said_once_with_what_to_try(capsys):
    config = LamConfig(width=16, heads=2, encoder_blocks=1, decoder_blocks=1, code_dim=8, codebook="per_token")
    model = LatentActionModel(config, 12, 9)
    watch = CodebookWatch(model, Accelerator(cpu=True), revive_every=10, steps=10, seed=0)
    for check in range(1, 7):
        model.bottleneck.counts.zero_()
        model.bottleneck.counts[:, 3] = 100
        assert watch(10 * check * 100 - 1)["perplexity"] == pytest.approx(1)
        said = capsys.readouterr().err
        assert ("collapsed" in said) == (check == 4)
        assert ("normalise_encodings" in said) == (check == 4)


TWO_PROCESSES = """
import sys
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from lam.codebook_watch import CodebookWatch
from lam.config import LamConfig
from lam.model import LatentActionModel

accelerator = Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
rank = accelerator.process_index
torch.manual_seed(0)
bottleneck = sys.argv[1]
config = LamConfig(network="perceptron", width=16, code_dim=8, num_codes=256, levels=(16, 16), bottleneck=bottleneck)
model = LatentActionModel(config, 12, 9).train()
torch.manual_seed(1 + rank)
rows = (50, 37)[rank if len(sys.argv) < 3 else 1 - rank]
model.bottleneck(torch.randn(rows, 4, 8))
watch = CodebookWatch(model, accelerator, revive_every=1, steps=100, seed=0)
metrics = watch(0)
histogram = torch.tensor(metrics["code_histogram"])
assert histogram.sum(1).tolist() == [87] * 4, histogram
codes = model.bottleneck.look_up(torch.arange(256)[:, None].expand(-1, 4))
both = accelerator.gather(codes[None].contiguous())
assert torch.equal(both[0], both[1])
assert metrics["revived"] > 0 or bottleneck == "fsq"
assert not model.bottleneck.counts.any()
"""


@pytest.mark.parametrize("words", [["vq"], ["vq_ema"], ["vq_ema", "fewer_rows_first"], ["fsq"]], ids="-".join)
def test_two_processes_with_unequal_batches_count_together_and_place_the_same_new_codes(tmp_path, words):
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(script),
        *words,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
