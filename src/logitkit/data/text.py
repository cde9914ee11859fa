"""Text as bytes: every byte is predicted from those before it in its window."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from logitkit.data.base import Dataset
from logitkit.errors import InputError, nearest

LENGTH = 64
SUFFIXES = (".txt", ".md", ".rst", ".py")
BYTES = tuple(chr(b) if 32 <= b < 127 else f"\\x{b:02x}" for b in range(256))
"""Names of the 256 tokens."""

STDLIB = (
    "argparse", "ast", "asyncio", "base64", "bdb", "bisect", "calendar", "cmd", "codecs", "collections",
    "concurrent", "configparser", "contextlib", "copy", "csv", "ctypes", "dataclasses", "difflib", "dis",
    "email", "enum", "fileinput", "fnmatch", "fractions", "functools", "glob", "gzip", "hashlib", "heapq",
    "html", "http", "inspect", "json", "locale", "logging", "mailbox", "mimetypes", "optparse", "pdb",
    "pickle", "plistlib", "pprint", "profile", "queue", "random", "sched", "shlex", "shutil", "smtplib",
    "socketserver", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading",
    "timeit", "tokenize", "traceback", "unittest", "urllib", "uuid", "warnings", "weakref", "xml", "zipfile",
)  # fmt: skip
"""The modules and packages of Python's standard library that `text:stdlib` is made of."""


def stdlib_sources(only: Iterable[str] = STDLIB, without: Iterable[str] = ()) -> dict[str, bytes]:
    """Source of standard-library modules by relative path (`"json/decoder.py"`), in sorted order.

    only, without: names in `STDLIB`. The same Python version gives the same text wherever it is installed;
    test suites are left out and line ends are newlines.
    """
    chosen = sorted(set(only) - set(without))
    for name in (*chosen, *without):
        if name not in STDLIB:
            raise InputError(f"{name!r} is not a module of text:stdlib.{nearest(name, STDLIB)}")
    root = Path(sysconfig.get_path("stdlib"))
    found = {}
    for name in chosen:
        package = root / name
        paths = package.rglob("*.py") if package.is_dir() else [root / f"{name}.py"]
        for path in paths:
            relative = path.relative_to(root)
            if not {"test", "tests", "idle_test"} & set(relative.parts):
                found[relative.as_posix()] = path
    return {relative: _newlines(found[relative].read_bytes()) for relative in sorted(found)}


def _newlines(text: bytes) -> bytes:
    return text.replace(b"\r\n", b"\n")


def read_text(source: str, length: int = LENGTH) -> Dataset:
    """`text:stdlib`, or `text:PATH` with a file or a folder of `.txt`, `.md`, `.rst` and `.py` files."""
    if source == "stdlib":
        return windows(stdlib_sources(), length, "text:stdlib")
    path = Path(source)
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
    else:
        raise InputError(
            f"text:{source} is neither a file, a folder, nor 'stdlib'.{nearest(source, ['stdlib'])}"
        )
    return windows({str(each): _newlines(each.read_bytes()) for each in files}, length, f"text:{source}")


def windows(texts: Mapping[str, bytes], length: int, name: str) -> Dataset:
    """Each text cut into windows of `length` + 1 bytes that overlap by one; a shorter rest is left out.

    x (N, length) is a window without its last byte and y (N, length) without its first, so that y[i] is the
    byte after x[i]. extras: "file" (N,) int64, the position of the text in `texts`.
    """
    starts, pieces, file = [], [], []
    for position, text in enumerate(texts.values()):
        data = np.frombuffer(text, dtype=np.uint8)
        count = (len(data) - 1) // length
        if count > 0:
            starts.append(data[: count * length].reshape(count, length))
            pieces.append(data[1 : count * length + 1].reshape(count, length))
            file.append(np.full(count, position))
    if not starts:
        raise InputError(f"{name} has no text of more than {length} bytes: use a smaller +length.")
    x, y = (torch.from_numpy(np.concatenate(parts).astype(np.int64)) for parts in (starts, pieces))
    extras = {"file": torch.from_numpy(np.concatenate(file))}
    return Dataset(name, x, y, "sequence", "tokens", BYTES, extras, vocabulary=256)


def encode(texts: Iterable[str], length: int) -> torch.Tensor:
    """(N, length) int64: byte + 1 of each text, cut or padded with 0 at the end; 257 different tokens."""
    rows = [np.frombuffer(text.encode()[:length], dtype=np.uint8).astype(np.int64) + 1 for text in texts]
    return torch.from_numpy(np.stack([np.pad(row, (0, length - len(row))) for row in rows]))
