"""Objectives by name: a new one is a class in a file beside this one, and a line here."""

from lam.objectives.adversary import ViewAdversary
from lam.objectives.consistency import ViewConsistency
from lam.objectives.contrastive import ContrastiveViews, CrossAndContrast
from lam.objectives.interface import Objective
from lam.objectives.proprioception import ProprioceptiveForward
from lam.objectives.published import Published
from lam.objectives.reconstruction import Cross, Mismatched, Own, OwnAndCross
from lam.objectives.supervised import ActionSupervised

OBJECTIVES: dict[str, type[Objective]] = {
    "self": Own,
    "self_cross": OwnAndCross,
    "cross": Cross,
    "mismatched": Mismatched,
    "view_consistency": ViewConsistency,
    "contrastive_views": ContrastiveViews,
    "self_cross_contrast": CrossAndContrast,
    "view_adversary": ViewAdversary,
    "proprioceptive_forward": ProprioceptiveForward,
    "action_supervised": ActionSupervised,
    "published": Published,
}
