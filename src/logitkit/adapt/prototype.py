"""The mean of a few examples' foreground, the arm that few-shot segmentation is compared with."""

from __future__ import annotations

from logitkit.adapt.repri import RePRI
from logitkit.registry import part


@part("prototype", "adapt", title="Mean of the support's foreground features", tasks=("segmentation",))
class Prototype(RePRI):
    """Segmentation by likeness to the mean of the labelled foreground: what few-shot methods should beat.

    Equation: a pixel with features f is foreground with p = sigmoid(temperature cos(w, f) - b), w the mean of
    the support's foreground features of length 1, b the mean of temperature cos(w, f) over the query.

    Shapes: as `RePRI`.

    Defaults: temperature 20, as RePRI, whose classifier before its first update this is.

    Raises: ValueError as `RePRI`.

    Source: Boudiaf et al., CVPR 2021, arXiv:2012.06166, section 3.2 (the initial classifier).

    Not for: anything but a baseline.
    """

    def __init__(self, temperature: float = 20.0) -> None:
        super().__init__(temperature, iterations=1)
