"""A valid call of bottleneck: objectives as in losses."""

from __future__ import annotations

from contract.rooms.losses import make

__all__ = ["make"]
