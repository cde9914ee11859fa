"""What users come with, and which parts and comparisons speak to it. Read by docs/generate.py."""

from __future__ import annotations

from typing import NamedTuple


class Situation(NamedTuple):
    """comparisons: names in docs/reports/run.py; parts: (room, name); note: what the numbers do not say."""

    title: str
    comparisons: tuple[str, ...]
    parts: tuple[tuple[str, str], ...]
    note: str = ""


SITUATIONS = (
    Situation(
        "Nothing special: classes, clean labels",
        ("calibration",),
        (("losses", "cross_entropy"), ("losses", "ensloss"), ("losses", "focal")),
        "Start with cross-entropy. No loss here is shown to beat its accuracy on clean digits.",
    ),
    Situation(
        "Wrong labels",
        ("label-noise-20", "label-noise-40", "crowd"),
        (("losses", "comp_sum"), ("losses", "aldr"), ("losses", "dco"), ("losses", "bias_loss"),
         ("robust", "toptwo"), ("robust", "dawid_skene")),
        "Where several people labelled each example, `votes=toptwo` or `votes=dawid_skene` makes the labels.",
    ),
    Situation("A long tail", ("long-tail", "long-tail-heads"),
              (("losses", "ldr"), ("heads", "naive_bayes"), ("heads", "cosine"))),
    Situation(
        "Many classes",
        ("many-classes", "extreme"),
        (("heads", "ebv"), ("heads", "normalized_softmax"), ("losses", "cut_cross_entropy"),
         ("losses", "z_loss"), ("contrast", "decoupled_softmax"), ("contrast", "soft_topk"),
         ("train", "ngame")),
        "`cut_cross_entropy` is cross-entropy without the matrix of logits: the same numbers in less memory."
        " `ops.SphericalOutput` trains a Z-loss exactly at a cost that does not grow with the classes.",
    ),
    Situation(
        "Calibration matters",
        ("calibration",),
        (("calibrate", "temperature"), ("calibrate", "correctness_aware"), ("softmax", "tempnet")),
        "`calibrate=temperature` works with every loss; see also [temperature](temperature.md).",
    ),
    Situation("Classes in order", ("ordinal",),
              (("heads", "ordinal"), ("heads", "fourier"), ("theory", "faceted_rasch"))),
    Situation("A number", ("regression-diabetes", "regression-friedman"),
              (("heads", "histogram"), ("heads", "fourier_regression"), ("losses", "huber"),
               ("bottleneck", "cs_ib"))),
    Situation("Labels of groups only", ("bags",), (("losses", "aggregate"),)),
    Situation(
        "Few examples of each class",
        (),
        (("heads", "naive_bayes"), ("heads", "normalized_softmax"), ("contrast", "proto_triplet"),
         ("contrast", "icnn"), ("adapt", "repri"), ("heads", "semantic")),
    ),
    Situation("Embeddings to search with", ("retrieval",),
              (("heads", "madacos"), ("heads", "normalized_softmax"), ("heads", "cosine"),
               ("contrast", "local_triplet"), ("calibrate", "dbnorm"), ("contrast", "anncur"))),
    Situation("Inputs unlike those of training", (),
              (("detect", "msp"), ("detect", "mahalanobis"), ("detect", "hyp_oc"))),
    Situation(
        "Language models",
        ("language-model",),
        (("losses", "cut_cross_entropy"), ("losses", "dco"), ("losses", "multitask"), ("losses", "eisl"),
         ("adapt", "flat"), ("softmax", "tempnet"), ("calibrate", "utility_probability")),
        "For Hugging Face models: `integrations.transformers.patch_loss` and `use_loss`.",
    ),
)  # fmt: skip
