"""023: bins that adapt see compression in networks whose units do not saturate, too.

Set beforehand: 12 bits, a label of linear and two pairwise terms; 12-10-7-5-4-3-2, Adam at 2e-3, 100 epochs,
3 seeds, EBAB of 30 bins on the last hidden layer; compression is the largest I(X; T) minus the last; at least
1.5 bits in every seed with ELU and with tanh; 30 fixed bins of [-1, 1] refuse ELU. Weight decay 0, 1e-3 and
3e-3 is reported, not judged.
Left open, and chosen before the first run: batches of 256 of 85 % of the words, the plane of all words,
looked at every 5 epochs; the weight decay is Adam's L2 term; fixed bins are offered the ELU layer at the end.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from logitkit.claims import words
from logitkit.claims.base import Check, Trial, claim, over_seeds
from logitkit.engine.run import isolated
from logitkit.probe import EBAB, FixedBins, InformationPlane, layer_outputs

EVERY = 5


@claim(
    "probe",
    "ebab",
    statement="Adaptive bins show 1.5 bits of compression with ELU as with tanh; fixed bins refuse ELU.",
    seeds=range(3),
)
def ebab(trial: Trial) -> list[Check]:
    epochs = trial.few(100, 10)
    with isolated(1):
        found = {
            name: [compression(seed, activation, epochs) for seed in trial.seeds]
            for name, activation in (("elu", nn.ELU), ("tanh", nn.Tanh))
        }
        decayed = {
            f"elu, weight decay {decay:g}": [
                compression(seed, nn.ELU, epochs, decay)[0] for seed in trial.seeds
            ]
            for decay in (1e-3, 3e-3)
        }
    bits = {name: [b for b, _ in several] for name, several in found.items()}
    refused = [float(r) for _, r in found["elu"]]
    return [
        over_seeds("least compression with ELU over seeds, bits", [min(bits["elu"])], ">=", 1.5,
                   {"elu": bits["elu"], **decayed}),
        over_seeds("least compression with tanh over seeds, bits", [min(bits["tanh"])], ">=", 1.5,
                   {"tanh": bits["tanh"]}),
        over_seeds("share of seeds in which fixed bins refuse ELU", refused, ">=", 1.0, {"elu": refused}),
    ]  # fmt: skip


def compression(
    seed: int, activation: Callable[[], nn.Module], epochs: int, weight_decay: float = 0.0
) -> tuple[float, bool]:
    """Bits that the last hidden layer loses, and whether fixed bins refuse it in the end."""
    x, y = words.draw(seed)
    model = words.network(activation, seed)
    plane = InformationPlane(EBAB(), model, x, y, [words.LAST])
    for epoch in words.training(x, y, model, epochs, seed, weight_decay):
        if epoch % EVERY == 0:
            plane.record(epoch)
    last = layer_outputs(model, x, [words.LAST])[words.LAST]
    return plane.compression()[words.LAST], refuses(FixedBins(), last)


def refuses(estimator: FixedBins, t: Tensor) -> bool:
    """Whether the estimator says that it cannot bin t."""
    try:
        estimator(t)
    except ValueError:
        return True
    return False
