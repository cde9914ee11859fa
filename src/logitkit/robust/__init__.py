"""Attacks and adversarial objectives: what a small change of the input can do, and training against it.
Labels from the votes of a crowd."""

from logitkit.robust.adv_comp_sum import AdvCompSum
from logitkit.robust.dawid_skene import DawidSkene, vote_shares
from logitkit.robust.faceted_rasch import RaschVotes
from logitkit.robust.fgsm import FGSM
from logitkit.robust.majority import Majority
from logitkit.robust.pgd import PGD
from logitkit.robust.toptwo import TopTwo, TopTwoAnswers

__all__ = [
    "FGSM",
    "PGD",
    "AdvCompSum",
    "DawidSkene",
    "Majority",
    "RaschVotes",
    "TopTwo",
    "TopTwoAnswers",
    "vote_shares",
]
