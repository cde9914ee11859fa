"""Where examples come from: `load` a spec, `split` it, fit a `Preprocessor` on the training rows."""

from logitkit.data.base import IGNORE, Column, Dataset, Options, Split, Table
from logitkit.data.load import SOURCES, load, load_unlabelled
from logitkit.data.ood import out_of_distribution
from logitkit.data.preprocess import Preprocessor
from logitkit.data.split import split

__all__ = [
    "IGNORE",
    "SOURCES",
    "Column",
    "Dataset",
    "Options",
    "Preprocessor",
    "Split",
    "Table",
    "load",
    "load_unlabelled",
    "out_of_distribution",
    "split",
]
