"""The data sets that come with scikit-learn: nothing to download."""

from __future__ import annotations

import torch

from logitkit.data.base import Dataset

BUNDLED = {
    "digits": "1797 grey 8x8 images of handwritten digits, 10 classes",
    "iris": "150 flowers, 4 measurements, 3 species",
    "wine": "178 wines, 13 measurements, 3 growers",
    "breast_cancer": "569 tumours, 30 measurements, malignant or benign",
    "diabetes": "442 patients, 10 measurements, regression on disease progression after a year",
}


def bundled(name: str) -> Dataset:
    """One of `BUNDLED`: digits as (N, 1, 8, 8) images in [0, 1], the others as vectors in their own units."""
    from sklearn import datasets

    load = getattr(datasets, f"load_{name}")
    bunch = load(scaled=False) if name == "diabetes" else load()
    x = torch.from_numpy(bunch.data).float()
    if name == "diabetes":
        return Dataset(name, x, torch.from_numpy(bunch.target).float(), "regression", "vector")
    names = tuple(str(each) for each in bunch.target_names)
    y = torch.from_numpy(bunch.target).long()
    if name == "digits":
        return Dataset(name, x.view(-1, 1, 8, 8) / 16, y, "classification", "image", names)
    return Dataset(name, x, y, "classification", "vector", names)
