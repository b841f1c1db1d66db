"""Conditional information by the chain rule: I(Z; A | S) = I(Z, S; A) - I(S; A)."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from lam.audit.estimators.coordinates import whitened, with_squares
from lam.audit.estimators.interface import Estimate, Estimator, Sample, inputs_of


def conditional(
    sample: Sample,
    given: Float[np.ndarray, "samples columns"],
    estimator: Estimator,
    folds: int = 5,
    seed: int = 0,
) -> Estimate:
    """Bits that latents tell about the actions beyond what `given` tells: I(Z; A | S) for a scene or state S.

    For I(Z; S | A) (does the latent hold the scene?) put S in the place of the actions and the actions in `given`.
    Both informations come from the same estimator, on the same folds, of continuous inputs: the codes as indicator
    columns and `given` with its squares and products. A difference of two lower bounds is no bound: where `given`
    tells about the actions in a way that the estimator misses alone, but not together with the latents, the difference
    is too large.

    Args:
        sample: latents (or codes) and actions.
        given: what is conditioned on; constant columns are ignored.
        estimator: one that takes continuous latents, `contrastive` or one of the Barber-Agakov.
        folds: of the cross-fitting.
        seed: of folds and networks.
    """
    return beyond(sample, given, estimator, folds, seed)(inputs_of(sample))


def beyond(
    sample: Sample,
    given: Float[np.ndarray, "samples columns"],
    estimator: Estimator,
    folds: int = 5,
    seed: int = 0,
) -> Callable[[Float[np.ndarray, "samples inputs"]], Estimate]:
    """`conditional` for several latents of the same samples: I(S; A) is estimated once, `inputs_of` each is given."""
    state = with_squares(whitened(given))
    alone = estimator(sample._replace(codes=None, latents=state), folds, seed)
    assert alone.contributions is not None

    def told_by(inputs: Float[np.ndarray, "samples inputs"]) -> Estimate:
        latents = np.concatenate([inputs, state], axis=1)
        together = estimator(sample._replace(codes=None, latents=latents), folds, seed)
        assert together.contributions is not None
        return Estimate(together.bits - alone.bits, together.contributions - alone.contributions, together.n)

    return told_by
