"""Images in folders: one folder per class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from logitkit.data.base import Dataset
from logitkit.errors import InputError, MissingExtra

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SIZE = 32
"""Pixels of height and width that images are resized to unless `+size=` says otherwise."""
PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def read_folder(root: Path, size: int = SIZE) -> Dataset:
    """`root/CLASS/*.png`, or `root/train/CLASS/*.png` and so on, which gives a fixed split.

    Classes are the folder names in sorted order, images are resized to (size, size) and are RGB unless all
    of them are grey.
    """
    parts = sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    split = {child: PARTS[child.name] for child in parts if child.name in PARTS}
    if len(split) < len(parts) or "train" not in split.values():
        split = {}
    found: list[tuple[Path, str, str]] = []
    for top in split or [root]:
        for folder in sorted(child for child in top.iterdir() if child.is_dir()):
            found += [(path, folder.name, split.get(top, "")) for path in image_paths(folder)]
    if not found:
        raise InputError(
            f"{root} has no folders of images: one folder per class is needed, e.g. {root}/cat/1.png."
        )
    names = sorted({label for _, label, _ in found})
    if len(names) < 2:
        raise InputError(
            f"every image of {root} is in the folder {names[0]!r}: at least two classes are needed."
        )
    y = torch.tensor([names.index(label) for _, label, _ in found])
    fixed = None
    if split:
        fixed = {
            part: torch.tensor([i for i, (_, _, p) in enumerate(found) if p == part], dtype=torch.int64)
            for part in dict.fromkeys(split.values())
        }
    x = read_images([path for path, _, _ in found], size)
    return Dataset(str(root), x, y, "classification", "image", tuple(names), fixed_split=fixed)


def image_paths(folder: Path) -> list[Path]:
    """The image files in `folder` and below, in sorted order."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def read_images(paths: list[Path], size: int, channels: int | None = None) -> Tensor:
    """The images at `paths`; see `resize`."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise MissingExtra("pillow", "images", "reading images") from None

    def opened() -> Iterator[Any]:
        for path in paths:
            try:
                with Image.open(path) as image:
                    yield image
            except (UnidentifiedImageError, OSError) as error:
                raise InputError(f"{path} cannot be read as an image: {error}.") from error

    return resize(opened(), size, channels)


def resize(images: Iterable[Any], size: int, channels: int | None = None) -> Tensor:
    """PIL images as (N, channels, size, size) float32 in [0, 1]; 3 channels, or 1 if all are grey."""
    arrays, grey = [], True
    for image in images:
        grey &= image.mode in ("1", "L")
        arrays.append(np.asarray(image.convert("RGB").resize((size, size))))
    x = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
    channels = channels or (1 if grey else 3)
    return x.mean(dim=1, keepdim=True) if channels == 1 else x
