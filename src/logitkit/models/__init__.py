"""Whole architectures: backbones `Part(input_shape, ...)` that turn examples into features for a head;
and models that answer in tokens."""

from logitkit.models.activator import Activator
from logitkit.models.ait import AiTSmall, MaskedVQVAE, mask_augment, masked_mse, silog_loss
from logitkit.models.attention_supernet import Architecture, AttentionSupernet, PairwiseRanker, Space, search
from logitkit.models.axial import AxialEncoder, AxialImageLM
from logitkit.models.base import Backbone
from logitkit.models.bivit import binarize_vit
from logitkit.models.cnn import CNN
from logitkit.models.convit import ConViT
from logitkit.models.cswin import CSWin
from logitkit.models.edge_moe import (
    EdgeMoEViT,
    TaskMoE,
    attention_schedule,
    online_softmax,
    table_gelu,
)
from logitkit.models.iformer import IFormer
from logitkit.models.illama import ILLaMA, SoftCausalMask, linear_mask_schedule
from logitkit.models.linear import LinearModel
from logitkit.models.maxim import MAXIM, SAM, CrossGating, MAXIMEncoder, MultiAxisGMLP, maxim_loss
from logitkit.models.mlp import MLP
from logitkit.models.raft_mlp import RaftMLP
from logitkit.models.ravlt import RAVLT
from logitkit.models.revcol import (
    ColumnDecoder,
    RevCol,
    ReversibleColumns,
    SupervisedColumns,
    compound_loss,
)
from logitkit.models.spartan import SpaRTAN
from logitkit.models.terminator import Terminator
from logitkit.models.transformer import Transformer
from logitkit.models.vit import ViT

__all__ = [
    "CNN",
    "MAXIM",
    "MLP",
    "RAVLT",
    "SAM",
    "Activator",
    "AiTSmall",
    "Architecture",
    "AttentionSupernet",
    "AxialEncoder",
    "AxialImageLM",
    "Backbone",
    "CSWin",
    "ColumnDecoder",
    "ConViT",
    "CrossGating",
    "EdgeMoEViT",
    "IFormer",
    "ILLaMA",
    "LinearModel",
    "MAXIMEncoder",
    "MaskedVQVAE",
    "MultiAxisGMLP",
    "PairwiseRanker",
    "RaftMLP",
    "RevCol",
    "ReversibleColumns",
    "SoftCausalMask",
    "SpaRTAN",
    "Space",
    "SupervisedColumns",
    "TaskMoE",
    "Terminator",
    "Transformer",
    "ViT",
    "attention_schedule",
    "binarize_vit",
    "compound_loss",
    "linear_mask_schedule",
    "mask_augment",
    "masked_mse",
    "maxim_loss",
    "online_softmax",
    "search",
    "silog_loss",
    "table_gelu",
]
