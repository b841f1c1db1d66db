import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from lam.blocks import SpatialAttention, SpatialBlock, SpatioTemporalBlock, TemporalAttention, attend
from lam.decoder import FeatureDecoder
from lam.encoder import LatentActionEncoder

SIZES = {"feature_dim": 12, "patches": 9, "width": 32, "blocks": 3, "heads": 4, "num_tokens": 4, "code_dim": 8}


def projected(attention, tokens):
    split = "batch slots (heads width) -> batch heads slots width"
    parts = (attention.query, attention.key, attention.value)
    return (rearrange(part(tokens), split, heads=attention.heads) for part in parts)


def masked(attention, tokens, mask=None):
    """Attention as it is written in a textbook: a table of scores, forbidden ones at minus infinity."""
    query, key, value = projected(attention, tokens)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return attention.out(rearrange(scores.softmax(-1) @ value, "batch heads slots width -> batch slots (heads width)"))


def check_same(ours, theirs, module):
    """Equal answers and equal gradients of all parameters."""
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    weights = torch.randn_like(ours)
    first = torch.autograd.grad((ours * weights).sum(), list(module.parameters()))
    second = torch.autograd.grad((theirs * weights).sum(), list(module.parameters()))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_temporal_attention_is_causal_attention_over_two_frames():
    torch.manual_seed(0)
    attention = TemporalAttention(32, 4)
    tokens = 3 * torch.randn(2, 2, 5, 32)
    by_slot = rearrange(tokens, "batch frames slots width -> (batch slots) frames width")
    wanted = masked(attention, by_slot, torch.ones(2, 2, dtype=torch.bool).tril())
    wanted = rearrange(wanted, "(batch slots) frames width -> batch frames slots width", slots=5)
    check_same(attention(tokens), wanted, attention)


def test_spatial_attention_is_attention_within_each_frame():
    torch.manual_seed(0)
    attention = SpatialAttention(32, 4)
    tokens = 3 * torch.randn(2, 2, 5, 32)
    wanted = masked(attention, tokens.flatten(0, 1)).unflatten(0, (2, 2))
    check_same(attention(tokens), wanted, attention)


def test_attention_by_plain_products_is_that_of_the_library():
    query, key, value = torch.randn(3, 2, 4, 7, 8)
    wanted = F.scaled_dot_product_attention(query[:, :, :3], key, value)
    torch.testing.assert_close(attend(query[:, :, :3], key, value), wanted, atol=1e-6, rtol=1e-5)


def test_slots_that_are_kept_come_out_as_if_all_were():
    torch.manual_seed(0)
    block = SpatioTemporalBlock(32, 4)
    tokens = torch.randn(2, 2, 7, 32)
    check_same(block(tokens, 3), block(tokens)[:, :, :3], block)


def test_later_frames_never_reach_the_first():
    block = SpatioTemporalBlock(32, 4)
    tokens = torch.randn(2, 2, 7, 32, requires_grad=True)
    block(tokens)[:, 0].sum().backward()
    assert tokens.grad[:, 0].abs().sum() > 0
    assert tokens.grad[:, 1].abs().sum() == 0


def test_slots_of_one_frame_never_reach_another():
    tokens = torch.randn(2, 3, 7, 32, requires_grad=True)
    SpatialBlock(32, 4)(tokens)[:, 1].sum().backward()
    assert [bool(tokens.grad[:, frame].abs().sum() > 0) for frame in range(3)] == [False, True, False]


@pytest.mark.parametrize("network", [LatentActionEncoder, FeatureDecoder])
def test_gradients_with_and_without_checkpointing_are_equal_and_less_is_kept_with_it(network):
    torch.manual_seed(0)
    module = network(**SIZES)
    inputs = [torch.randn(5, 2, 9, 12)] if network is LatentActionEncoder else [torch.randn(5, 9, 12)]
    inputs += [] if network is LatentActionEncoder else [torch.randn(5, 4, 8)]
    answers, kept = [], []
    for is_on in (False, True):
        module.checkpoint_gradients = is_on
        module.zero_grad()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, into=sizes: into.append(t.nbytes) or t, lambda t: t):
            loss = module(*inputs).square().sum()
        loss.backward()
        answers.append([p.grad.clone() for p in module.parameters()])
        kept.append(sum(sizes))
    assert all(torch.equal(one, other) for one, other in zip(*answers, strict=True))
    assert kept[1] < 0.3 * kept[0]


@pytest.mark.parametrize("network", [LatentActionEncoder, FeatureDecoder])
def test_half_precision_stays_near_float32(network):
    torch.manual_seed(0)
    module = network(**SIZES)
    inputs = [torch.randn(5, 2, 9, 12)] if network is LatentActionEncoder else [torch.randn(5, 9, 12)]
    inputs += [] if network is LatentActionEncoder else [torch.randn(5, 4, 8)]
    wanted = module(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = module(*inputs)
    assert found.dtype == torch.bfloat16
    assert (found.float() - wanted).norm() < 0.02 * wanted.norm()
