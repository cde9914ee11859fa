"""Attacks and adversarial objectives: what a small change of the input can do, and training against it."""

from logitkit.robust.adv_comp_sum import AdvCompSum
from logitkit.robust.fgsm import FGSM
from logitkit.robust.pgd import PGD

__all__ = ["FGSM", "PGD", "AdvCompSum"]
