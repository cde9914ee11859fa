"""Recipe in, trained model out."""

from logitkit.engine.objective import Batch
from logitkit.engine.predictor import Predictor, load
from logitkit.engine.recipe import PartSpec, Recipe
from logitkit.engine.run import RunResult, prepare, run
from logitkit.engine.train import Algorithm, Diverged, Prepared, Trainer

__all__ = [
    "Algorithm",
    "Batch",
    "Diverged",
    "PartSpec",
    "Predictor",
    "Prepared",
    "Recipe",
    "RunResult",
    "Trainer",
    "load",
    "prepare",
    "run",
]
