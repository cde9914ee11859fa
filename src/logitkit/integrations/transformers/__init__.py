"""logitkit in Hugging Face transformers: losses for causal language models, attention for every model,
and trained models made linear."""

import importlib

from logitkit.errors import MissingExtra

try:
    importlib.import_module("transformers")
except ImportError:
    raise MissingExtra("transformers", "hf", "logitkit.integrations.transformers") from None

from logitkit.integrations.transformers.attention import register
from logitkit.integrations.transformers.linearize import linearize
from logitkit.integrations.transformers.losses import patch_loss, unpatch_loss, use_loss

__all__ = ["linearize", "patch_loss", "register", "unpatch_loss", "use_loss"]
