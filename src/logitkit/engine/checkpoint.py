"""Nested state (dicts, lists, numbers, tensors) to one safetensors file and back, written atomically.

Nothing is pickled: tensors go into the file's body, the structure as JSON into its header.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from logitkit.errors import InputError


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        # clone: safetensors refuses tensors that share memory, and a later step may change this one
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[_pack(k, tensors), _pack(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_pack(v, tensors) for v in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise InputError(
        f"a checkpoint holds numbers, text, tensors, lists and dicts; got {type(value).__name__}."
    )


def _unpack(node: Any, tensors: dict[str, Tensor]) -> Any:
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {_unpack(k, tensors): _unpack(v, tensors) for k, v in value}
    if kind in ("list", "tuple"):
        items = [_unpack(v, tensors) for v in value]
        return items if kind == "list" else tuple(items)
    return value


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` so that `path` holds either all of it or what it held before.

    Raises InputError when the disk is full or the folder cannot be written; nothing half-written stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # where the folder cannot be made there is nothing to remove
            temporary.unlink()
        what = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error)).lower()
        raise InputError(f"cannot write {path}: {what}. What was there before is kept.") from error


def save_state(path: Path, state: Any) -> None:
    """Write `state` to `path` atomically."""
    tensors: dict[str, Tensor] = {}
    skeleton = _pack(state, tensors)
    write_atomically(path, save(tensors, metadata={"state": json.dumps(skeleton)}))


def load_state(path: Path) -> Any:
    """What `save_state` wrote to `path`. Raises InputError if the file is missing or is not one of ours."""
    if not path.is_file():
        raise InputError(f"there is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            # clone: a product may round differently where memory is not aligned, as that of a file is not
            tensors = {name: file.get_tensor(name).clone() for name in names}
    except SafetensorError as error:
        kind = "a pickle, which is never loaded" if _is_pickle(path) else f"damaged ({error})"
        raise InputError(f"{path} is not a safetensors file: it is {kind}.") from error
    if "state" not in metadata:
        raise InputError(f"{path} is a safetensors file that logitkit did not write.")
    return _unpack(json.loads(metadata["state"]), tensors)


def _is_pickle(path: Path) -> bool:
    head = path.read_bytes()[:4]
    return head[:1] == b"\x80" or head[:4] == b"PK\x03\x04"


def rng_state() -> dict[str, Any]:
    """The state of torch's global generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": list(cuda)}


def set_rng_state(state: dict[str, Any]) -> None:
    """Undo everything drawn since `rng_state`."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
