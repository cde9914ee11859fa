"""Objectives on embeddings (contrastive, metric, local), and on scores of many labels; search by score."""

from logitkit.contrast.anncur import ANNCUR, recall_vs_cost, topk_recall
from logitkit.contrast.ar2 import AR2Loss, AR2Trainer
from logitkit.contrast.base import RankingLoss
from logitkit.contrast.cacr import CACRLoss
from logitkit.contrast.decoupled_softmax import DecoupledSoftmax, decoupled_softmax
from logitkit.contrast.icnn import ICNNLoss, icnn_score
from logitkit.contrast.local_triplet import LocalTripletLoss, hard_tuples, local_triplet, match_local
from logitkit.contrast.multi_positive import MultiPositive
from logitkit.contrast.multi_similarity import MultiSimilarityLoss
from logitkit.contrast.nt_xent import NTXentLoss
from logitkit.contrast.proto_triplet import (
    EpisodeSampler,
    ProtoTripletLoss,
    episode_accuracy,
    prototypes,
)
from logitkit.contrast.siglip import SigLIPLoss
from logitkit.contrast.simclr import SimCLRLoss
from logitkit.contrast.soft_topk import SoftTopK
from logitkit.contrast.supcon import SupConLoss
from logitkit.contrast.tempnet_contrastive import TemperatureGenerator, TempNetContrastive
from logitkit.contrast.triplet import TripletLoss
from logitkit.contrast.triplet_ohnm import TripletOHNM, triplet_ohnm

__all__ = [
    "ANNCUR",
    "AR2Loss",
    "AR2Trainer",
    "CACRLoss",
    "DecoupledSoftmax",
    "EpisodeSampler",
    "ICNNLoss",
    "LocalTripletLoss",
    "MultiPositive",
    "MultiSimilarityLoss",
    "NTXentLoss",
    "ProtoTripletLoss",
    "RankingLoss",
    "SigLIPLoss",
    "SimCLRLoss",
    "SoftTopK",
    "SupConLoss",
    "TempNetContrastive",
    "TemperatureGenerator",
    "TripletLoss",
    "TripletOHNM",
    "decoupled_softmax",
    "episode_accuracy",
    "hard_tuples",
    "icnn_score",
    "local_triplet",
    "match_local",
    "prototypes",
    "recall_vs_cost",
    "topk_recall",
    "triplet_ohnm",
]
