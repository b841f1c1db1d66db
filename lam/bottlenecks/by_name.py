"""Bottlenecks by name: a new one is a class in a file beside this one, and a line here."""

from collections.abc import Callable

from lam.bottlenecks.fsq import FiniteScalarQuantizer
from lam.bottlenecks.gaussian_kl import GaussianBottleneck
from lam.bottlenecks.interface import Bottleneck
from lam.bottlenecks.unbounded import NoBottleneck
from lam.bottlenecks.vq import VectorQuantizer
from lam.bottlenecks.vq_ema import EmaVectorQuantizer
from lam.config import LamConfig

BOTTLENECKS: dict[str, Callable[[LamConfig], Bottleneck]] = {
    "vq": lambda c: VectorQuantizer(c.num_codes, c.code_dim, c.num_tokens, c.beta, c.codebook == "shared"),
    "vq_ema": lambda c: EmaVectorQuantizer(
        c.num_codes, c.code_dim, c.num_tokens, c.beta, c.codebook == "shared", c.ema_decay
    ),
    "fsq": lambda c: FiniteScalarQuantizer(c.levels, c.code_dim, c.num_tokens),
    "gaussian_kl": lambda c: GaussianBottleneck(c.code_dim, c.num_tokens, c.kl_weight),
    "none": lambda c: NoBottleneck(c.num_tokens),
}
