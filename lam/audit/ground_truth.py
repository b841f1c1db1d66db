"""Laws of latents and actions whose mutual information is known: closed forms, quadrature, counting.

Each case draws a sample of any size. `kind` says who can be held to it: "codes" against continuous actions, "discrete"
where actions are discrete too, "latents" where both are continuous.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import cauchy, norm

from lam.audit.estimators.interface import Sample

Random = np.random.Generator
CODES, TOKENS, DIMS = 16, 4, 7
BLOCK = 25
"""Samples in each episode."""


class Case(NamedTuple):
    """A law with known information."""

    kind: str
    """codes, discrete or latents."""
    bits: float
    """I(latent; action)."""
    draw: Callable[[int, Random], Sample]
    """A sample of so many transitions."""


def gaussian_bits(correlation: float) -> float:
    """I of two normal variables: -1/2 log2(1 - correlation^2); independent pairs add up."""
    return float(-0.5 * np.log2(1 - correlation**2))


@cache
def binned_bits(correlation: float, codes: int = CODES) -> float:
    """I(bin of u; a) with u, a normal and correlated, equally likely bins of u: by quadrature over a."""
    edges, points = norm.ppf(np.linspace(0, 1, codes + 1)), np.linspace(-8, 8, 8001)
    weights = norm.pdf(points) / norm.pdf(points).sum()
    below = norm.cdf((edges[None] - correlation * points[:, None]) / np.sqrt(1 - correlation**2))
    return round(float(np.log2(codes) - weights @ _entropies(np.diff(below, axis=1))), 9)


@cache
def folded_bits(correlation: float, codes: int = CODES) -> float:
    """I(bin of |u|; a), as `binned_bits`: the sign of the action is not told."""
    edges, points = norm.ppf(0.5 + np.linspace(0, 1, codes + 1) / 2), np.linspace(-8, 8, 8001)
    weights, spread = norm.pdf(points) / norm.pdf(points).sum(), np.sqrt(1 - correlation**2)
    sides = [norm.cdf((edges[None] - sign * correlation * points[:, None]) / spread) for sign in (1, -1)]
    return float(np.log2(codes) - weights @ _entropies(sum(np.diff(side, axis=1) for side in sides)))


def symmetric_channel_bits(error: float, levels: int = 2) -> float:
    """Capacity of a channel that keeps a uniform symbol, or with chance `error` makes it one of the others."""
    chances = np.array([[1 - error, *[error / (levels - 1)] * (levels - 1)]])
    return round(float(np.log2(levels) - _entropies(chances)[0]), 9)


def conditional_gaussian_bits(covariance: Float[np.ndarray, "3 3"]) -> float:
    """I(z; a | s) of a normal triple (z, a, s), from the partial correlation."""
    precision = np.linalg.inv(covariance)
    return gaussian_bits(float(-precision[0, 1] / np.sqrt(precision[0, 0] * precision[1, 1])))


def linear_model_bits(
    action_map: Float[np.ndarray, "features dims"], nuisance_map: Float[np.ndarray, "features nuisances"], latents: int
) -> float:
    """I(z; a) of a linear latent action model: z the first principal components of x = A a + N s, a and s normal.

    Such a model minimises reconstruction error; it keeps what varies most, be that action or camera.
    """
    covariance = action_map @ action_map.T + nuisance_map @ nuisance_map.T
    _, directions = np.linalg.eigh(covariance)
    kept = directions[:, -latents:].T
    nuisance = kept @ nuisance_map
    both = np.linalg.slogdet(kept @ covariance @ kept.T)[1]
    return float((both - np.linalg.slogdet(nuisance @ nuisance.T)[1]) / (2 * np.log(2)))


def binned(values: Float[np.ndarray, "*shape"], codes: int = CODES) -> Int[np.ndarray, "*shape"]:
    """Equally likely bins of standard normal values."""
    return np.clip((norm.cdf(values) * codes).astype(np.int64), 0, codes - 1)


def noisy(values: Float[np.ndarray, "*shape"], correlation: float, rng: Random) -> Float[np.ndarray, "*shape"]:
    """Standard normal values correlated with these."""
    return correlation * values + np.sqrt(1 - correlation**2) * rng.standard_normal(values.shape)


def binned_copies(
    n: int, rng: Random, correlation: float, tokens: int = TOKENS, codes: int = CODES, dims: int = DIMS
) -> Sample:
    """Normal actions; each token bins a noisy copy of one dimension."""
    actions = rng.standard_normal((n, dims))
    return Sample(actions, binned(noisy(actions[:, :tokens], correlation, rng), codes), None, np.arange(n) // BLOCK)


def ill_conditioned(dims: int, condition: float, rng: Random) -> Float[np.ndarray, "dims dims"]:
    """A random linear map with this ratio of largest to smallest singular value."""
    left, right = (np.linalg.qr(rng.standard_normal((dims, dims)))[0] for _ in range(2))
    return left * np.logspace(0, -np.log10(condition), dims) @ right


def _entropies(chances: np.ndarray) -> np.ndarray:
    safe = np.clip(chances, 1e-300, 1)
    return -np.sum(safe * np.log2(safe), axis=1)


def _codes_of(
    change: Callable[[np.ndarray, Random], np.ndarray], **law: float | int
) -> Callable[[int, Random], Sample]:
    def draw(n: int, rng: Random) -> Sample:
        sample = binned_copies(n, rng, **law)
        return sample._replace(codes=change(sample.codes, rng))

    return draw


def _actions_of(
    change: Callable[[np.ndarray, Random], np.ndarray], **law: float | int
) -> Callable[[int, Random], Sample]:
    def draw(n: int, rng: Random) -> Sample:
        sample = binned_copies(n, rng, **law)
        return sample._replace(actions=change(sample.actions, rng))

    return draw


def _binned_case(correlation: float) -> Case:
    return Case("codes", TOKENS * binned_bits(correlation), lambda n, rng: binned_copies(n, rng, correlation))


def _gaussian(n: int, rng: Random, correlation: float, blocks: int) -> Sample:
    actions = rng.standard_normal((n, max(blocks, 3)))
    return Sample(actions, None, noisy(actions[:, :blocks], correlation, rng), np.arange(n) // BLOCK)


def _with_noise(codes: np.ndarray, rng: Random) -> np.ndarray:
    return np.concatenate([codes[:, :2], rng.integers(0, CODES, (len(codes), 2))], axis=1)


def _noisy_copies(codes: np.ndarray, rng: Random) -> np.ndarray:
    changed = rng.random(codes[:, :2].shape) < 0.2
    return np.concatenate(
        [codes[:, :2], np.where(changed, rng.integers(0, CODES, changed.shape), codes[:, :2])], axis=1
    )


def _masked(codes: np.ndarray, rng: Random) -> np.ndarray:
    """The code plus a random key, and the key: alone each tells nothing."""
    key = rng.integers(0, codes.max() + 1, codes.shape)
    return np.concatenate([key, (codes + key) % (codes.max() + 1)], axis=1)


def _channel(n: int, rng: Random, error: float, levels: int, tokens: int) -> Sample:
    actions = rng.integers(0, levels, (n, tokens))
    shift = np.where(rng.random((n, tokens)) < error, rng.integers(1, levels, (n, tokens)), 0)
    return Sample(actions.astype(np.float64), (actions + shift) % levels, None, np.arange(n) // BLOCK)


def _exclusive_or(n: int, rng: Random, joint: bool) -> Sample:
    key, action = rng.integers(0, 2, (2, n))
    codes = np.stack([key, key ^ action], axis=1)
    return Sample(action[:, None].astype(np.float64), codes if joint else codes[:, 1:], None, np.arange(n) // BLOCK)


def _certain(n: int, rng: Random, chances: np.ndarray) -> Sample:
    """One token that names which part of the first dimension's range an action lies in, parts of these chances."""
    actions = rng.standard_normal((n, DIMS))
    codes = np.searchsorted(np.cumsum(chances)[:-1], norm.cdf(actions[:, :1]))
    return Sample(actions, codes, None, np.arange(n) // BLOCK)


def _few_episodes(n: int, rng: Random, kept: float, spread: float) -> Sample:
    """Codes and actions that each stay alike through 24 long episodes, and know nothing of each other."""
    episodes = np.arange(n) * 24 // n
    actions = rng.standard_normal((24, 3))[episodes] + spread * rng.standard_normal((n, 3))
    codes = rng.integers(0, CODES, (24, TOKENS))[episodes]
    changed = rng.random(codes.shape) > kept
    return Sample(actions, np.where(changed, rng.integers(0, CODES, codes.shape), codes), None, episodes)


def _gripper(n: int, rng: Random) -> Sample:
    sample = binned_copies(n, rng, 0.8)
    is_open = sample.actions[:, 6] > 0
    told = np.where(rng.random(n) < 0.05, ~is_open, is_open)
    actions = np.concatenate([sample.actions[:, :6], is_open[:, None]], axis=1)
    return sample._replace(actions=actions, codes=np.concatenate([sample.codes[:, :3], told[:, None]], axis=1))


def _folded(n: int, rng: Random) -> Sample:
    actions = rng.standard_normal((n, DIMS))
    size = 2 * norm.cdf(np.abs(noisy(actions[:, :2], 0.95, rng))) - 1
    return Sample(actions, np.minimum((size * CODES).astype(np.int64), CODES - 1), None, np.arange(n) // BLOCK)


def _toy_encoder(n: int, rng: Random, action: float) -> Sample:
    """Latent of an action and a camera, each standard normal, with these weights: the camera is not in the actions."""
    actions, camera = rng.standard_normal((2, n, 2))
    latents = action * actions + (1 - action) * camera + 0.1 * rng.standard_normal((n, 2))
    return Sample(actions, None, latents, np.arange(n) // BLOCK)


def _toy_bits(action: float) -> float:
    return float(np.log2(1 + action**2 / ((1 - action) ** 2 + 0.01)))


def _linear_model(n: int, rng: Random) -> Sample:
    actions, nuisance = rng.standard_normal((n, 3)), rng.standard_normal((n, 8))
    frames = actions @ ACTION_MAP.T + nuisance @ NUISANCE_MAP.T
    _, directions = np.linalg.eigh(ACTION_MAP @ ACTION_MAP.T + NUISANCE_MAP @ NUISANCE_MAP.T)
    return Sample(actions, None, frames @ directions[:, -3:], np.arange(n) // BLOCK)


def _heavy(actions: np.ndarray, rng: Random) -> np.ndarray:
    return cauchy.ppf(norm.cdf(actions))


def _rotation(rng: Random) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((DIMS, DIMS)))[0]


ACTION_MAP = np.random.default_rng(0).standard_normal((8, 3))
NUISANCE_MAP = np.random.default_rng(1).standard_normal((8, 8)) / 2
EQUAL_WIDTH = np.diff(norm.cdf([-np.inf, *np.linspace(-3, 3, 15), np.inf]))
ZIPF = (1 / np.arange(1, 65)) / np.sum(1 / np.arange(1, 65))
_EIGHT = {"correlation": 0.8}
_STRONG = TOKENS * binned_bits(0.8)

CASES = {
    "independent": _binned_case(0.0),
    "independent, clustered and redundant": Case(
        "codes", 0.0, _codes_of(lambda codes, _: np.repeat(codes[:, :1], 4, axis=1), correlation=0.0)
    ),
    "independent, heavy tails": Case("codes", 0.0, _actions_of(_heavy, correlation=0.0)),
    "independent, few long episodes": Case("codes", 0.0, lambda n, rng: _few_episodes(n, rng, 0.5, 0.5)),
    "independent, few monotonous episodes": Case("codes", 0.0, lambda n, rng: _few_episodes(n, rng, 0.9, 0.1)),
    "binned, weak": _binned_case(0.43),
    "binned, medium": _binned_case(0.6),
    "binned, strong": _binned_case(0.8),
    "binned, very strong": _binned_case(0.895),
    "copied tokens": Case("codes", 2 * binned_bits(0.8), _codes_of(lambda codes, _: codes[:, [0, 0, 1, 1]], **_EIGHT)),
    "noisy copies of tokens": Case("codes", 2 * binned_bits(0.8), _codes_of(_noisy_copies, **_EIGHT)),
    "tokens of noise": Case("codes", 2 * binned_bits(0.8), _codes_of(_with_noise, **_EIGHT)),
    "relabelled codes": Case("codes", _STRONG, _codes_of(lambda codes, rng: rng.permutation(CODES)[codes], **_EIGHT)),
    "scales 1e-6 to 1e6": Case(
        "codes", _STRONG, _actions_of(lambda a, rng: a * 10 ** rng.uniform(-6, 6, DIMS), **_EIGHT)
    ),
    "rotated": Case("codes", _STRONG, _actions_of(lambda actions, rng: actions @ _rotation(rng), **_EIGHT)),
    "ill-conditioned": Case(
        "codes", _STRONG, _actions_of(lambda a, rng: a @ ill_conditioned(DIMS, 1e8, rng), **_EIGHT)
    ),
    "heavy tails": Case("codes", _STRONG, _actions_of(_heavy, **_EIGHT)),
    "heavy tails, rotated": Case(
        "codes", _STRONG, _actions_of(lambda a, rng: _heavy(a, rng) @ _rotation(rng), **_EIGHT)
    ),
    "one token of 64 codes": Case(
        "codes", binned_bits(0.95, 64), lambda n, rng: binned_copies(n, rng, 0.95, tokens=1, codes=64)
    ),
    "bins of equal width": Case(
        "codes", float(_entropies(EQUAL_WIDTH[None])[0]), lambda n, rng: _certain(n, rng, EQUAL_WIDTH)
    ),
    "64 codes, most of them rare": Case(
        "codes", float(_entropies(ZIPF[None])[0]), lambda n, rng: _certain(n, rng, ZIPF)
    ),
    "eight tokens of 4 codes": Case(
        "codes", 8 * binned_bits(0.8, 4), lambda n, rng: binned_copies(n, rng, 0.8, tokens=8, codes=4, dims=10)
    ),
    "masked by a key (xor of 4 codes)": Case(
        "codes", 2 * binned_bits(0.9, 4), _codes_of(_masked, correlation=0.9, tokens=2, codes=4)
    ),
    "gripper among the actions": Case("codes", 3 * binned_bits(0.8) + symmetric_channel_bits(0.05), _gripper),
    "size without sign": Case("codes", 2 * folded_bits(0.95), _folded),
    "binary channel": Case("discrete", symmetric_channel_bits(0.1), lambda n, rng: _channel(n, rng, 0.1, 2, 1)),
    "channel of 5 levels, independent": Case("discrete", 0.0, lambda n, rng: _channel(n, rng, 0.8, 5, 2)),
    "channel of 5 levels": Case(
        "discrete", 2 * symmetric_channel_bits(0.3, 5), lambda n, rng: _channel(n, rng, 0.3, 5, 2)
    ),
    "copy": Case("discrete", 2.0, lambda n, rng: _channel(n, rng, 0.0, 4, 1)),
    "exclusive or, one token": Case("discrete", 0.0, lambda n, rng: _exclusive_or(n, rng, joint=False)),
    "exclusive or": Case("discrete", 1.0, lambda n, rng: _exclusive_or(n, rng, joint=True)),
    "normal, independent": Case("latents", 0.0, lambda n, rng: _gaussian(n, rng, 0.0, 3)),
    "normal": Case("latents", gaussian_bits(0.6), lambda n, rng: _gaussian(n, rng, 0.6, 1)),
    "normal, three blocks": Case("latents", 3 * gaussian_bits(0.8), lambda n, rng: _gaussian(n, rng, 0.8, 3)),
    "encoder of the camera": Case("latents", 0.0, lambda n, rng: _toy_encoder(n, rng, 0.0)),
    "encoder of a mixture": Case("latents", _toy_bits(0.5), lambda n, rng: _toy_encoder(n, rng, 0.5)),
    "encoder of the action": Case("latents", _toy_bits(1.0), lambda n, rng: _toy_encoder(n, rng, 1.0)),
    "linear latent action model": Case("latents", linear_model_bits(ACTION_MAP, NUISANCE_MAP, 3), _linear_model),
}
