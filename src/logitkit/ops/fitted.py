"""Modules whose state is learned by `fit` instead of by gradient descent."""

from __future__ import annotations

from typing import Any

from torch import nn


class Fitted(nn.Module):
    """A module whose buffers take their shape from data; an unfitted one loads a fitted one's state."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            saved = state_dict.get(prefix + name)
            if saved is not None and saved.shape != buffer.shape:
                setattr(self, name, buffer.new_empty(saved.shape, dtype=saved.dtype))
        super()._load_from_state_dict(state_dict, prefix, *arguments)
