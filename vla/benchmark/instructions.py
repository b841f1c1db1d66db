"""Instructions as long as those of robot data sets are: most of five to twelve words, a few of up to thirty."""

import numpy as np

MIDDLE, SPREAD, SHORTEST, LONGEST = 8.0, 0.45, 2, 30
"""Of the number of words, which is log-normal."""
WORDS = (
    "pick up the red green blue small large cube bowl cup plate spoon towel drawer lid pot carrot bottle block and "
    "place it on in to left right of next close open push pull turn slide move from front back table counter sink "
    "stove handle button gently then with gripper stack between corner top bottom"
)


def instructions(number: int, seed: int = 0) -> list[str]:
    """So many, the same each time."""
    draws = np.random.default_rng(seed)
    counts = np.exp(draws.normal(np.log(MIDDLE), SPREAD, number)).round().clip(SHORTEST, LONGEST).astype(int)
    return [" ".join(draws.choice(WORDS.split(), count)) for count in counts]
