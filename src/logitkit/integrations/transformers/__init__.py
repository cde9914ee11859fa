"""logitkit in Hugging Face transformers: losses for causal language models, attention for every model,
trained models made linear, and similarities of images to concepts."""

import importlib

from logitkit.errors import MissingExtra

try:
    importlib.import_module("transformers")
except ImportError:
    raise MissingExtra("transformers", "hf", "logitkit.integrations.transformers") from None

from logitkit.integrations.transformers.attention import register
from logitkit.integrations.transformers.concepts import concept_similarities
from logitkit.integrations.transformers.linearize import linearize
from logitkit.integrations.transformers.losses import patch_loss, unpatch_loss, use_loss

__all__ = ["concept_similarities", "linearize", "patch_loss", "register", "unpatch_loss", "use_loss"]
