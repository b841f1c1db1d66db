"""Objectives by name: a new one is a function in a file beside this one, and a line here."""

from lam.objectives.consistency import view_consistency
from lam.objectives.interface import Objective
from lam.objectives.published import published
from lam.objectives.reconstruction import (
    cross_reconstruction,
    mismatched_reconstruction,
    self_and_cross_reconstruction,
    self_reconstruction,
)
from lam.objectives.supervised import action_supervised

OBJECTIVES: dict[str, Objective] = {
    "self": self_reconstruction,
    "self_cross": self_and_cross_reconstruction,
    "cross": cross_reconstruction,
    "mismatched": mismatched_reconstruction,
    "view_consistency": view_consistency,
    "action_supervised": action_supervised,
    "published": published,
}
VIEWS_NEEDED = {"self_cross": 2, "cross": 2, "mismatched": 2, "view_consistency": 2}
"""Synchronised views that an objective needs of each sample; one where it is not named."""
