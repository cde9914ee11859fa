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
        ("label-noise-20", "label-noise-40", "crowd", "crowd-levels"),
        (("losses", "comp_sum"), ("losses", "aldr"), ("losses", "dco"), ("losses", "bias_loss"),
         ("robust", "toptwo"), ("robust", "dawid_skene"), ("robust", "faceted_rasch")),
        "Where several people labelled each example, `votes=toptwo` or `votes=dawid_skene` makes the labels,"
        " and `votes=faceted_rasch` those of ordered levels.",
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
    Situation("A number", ("regression-diabetes", "regression-friedman", "regression-experts"),
              (("heads", "histogram"), ("heads", "fourier_regression"), ("heads", "topk_moe"),
               ("losses", "huber"), ("bottleneck", "cs_ib"))),
    Situation("A number for every pixel", ("depth",), (("heads", "soft_token"), ("heads", "linear"))),
    Situation("Labels of groups only", ("bags",), (("losses", "aggregate"),)),
    Situation("Features that have names, and a prediction that shows them", ("concepts",),
              (("bottleneck", "sparse_cbm"),)),
    Situation(
        "Few examples of each class",
        ("few-rows", "few-shot-segmentation"),
        (("heads", "naive_bayes"), ("heads", "normalized_softmax"), ("contrast", "proto_triplet"),
         ("contrast", "icnn"), ("adapt", "prototype"), ("adapt", "repri"), ("heads", "semantic")),
    ),
    Situation("Embeddings to search with", ("retrieval", "hubs"),
              (("heads", "madacos"), ("heads", "normalized_softmax"), ("heads", "cosine"),
               ("contrast", "local_triplet"), ("calibrate", "dbnorm"))),
    Situation(
        "Views of an example in the place of labels, or beside them",
        (),
        (("contrast", "cacr"), ("contrast", "simclr"), ("contrast", "siglip")),
        "`regularize=0.1*cacr` beside a loss of labels; `loss=cacr` with `data=...+task=retrieval` learns"
        " without any.",
    ),
    Situation("Documents that answer queries", ("search", "search-cost"),
              (("heads", "dual"), ("heads", "cross"), ("contrast", "ar2"), ("contrast", "anncur"))),
    Situation("A small network, beside a larger one", (),
              (("distill", "nkd"), ("distill", "uskd"), ("distill", "kd")),
              "Write `regularize=nkd teacher=`, with the larger model; `uskd` needs none."),
    Situation("Inputs unlike those of training", ("one-class",),
              (("detect", "msp"), ("detect", "mahalanobis"), ("detect", "hyp_oc"))),
    Situation("Boxes of a detector", ("boxes",), (("calibrate", "soft_nms"),)),
    Situation(
        "Language models",
        ("language-model", "noisy-sequences", "answers", "unlearning"),
        (("losses", "cut_cross_entropy"), ("losses", "dco"), ("losses", "multitask"), ("losses", "eisl"),
         ("adapt", "flat"), ("softmax", "tempnet"), ("calibrate", "utility_probability")),
        "For Hugging Face models: `integrations.transformers.patch_loss` and `use_loss`.",
    ),
)  # fmt: skip


ATTENTION = (
    Situation(
        "Nothing special: a transformer of some thousand tokens at most",
        ("attention-text-128", "attention-quasi-lstm", "attention-images"),
        (("attention", "softmax"), ("attention", "sigmoid"), ("attention", "softplus"),
         ("attention", "selective"), ("attention", "entropy_guided")),
        "Start with softmax. Sigmoid attention is as good; on a CPU it is faster from 2,048 tokens on with"
        " heads of 64 features, and slower with heads of 16 ([performance](performance.md)).",
    ),
    Situation(
        "Long sequences, and decoding from a state of fixed size",
        ("attention-text-2048", "attention-text-8192"),
        (("attention", "linear"), ("attention", "dsf"), ("attention", "cosformer"), ("attention", "qlstm"),
         ("attention", "lolcats")),
        "A step of linear, normalised and cosFormer attention is cheaper than one of softmax from about 2,048"
        " tokens on, and takes a fifth or a sixth of its time at 8,192; the quasi-LSTM and LoLCATs become"
        " cheaper somewhere between ([the table](#causal-attention-by-length)). `attention.linearize` and"
        " `integrations.transformers.linearize`"
        " turn a trained softmax model into one.",
    ),
    Situation(
        "Recalling one of many tokens, or relations of three",
        ("attention-recall-12", "attention-recall-128", "attention-recall-512", "attention-recall-2048"),
        (("attention", "hopfield"), ("attention", "selective"), ("attention", "tensor")),
        "What keeps a state of fixed size instead of all keys has lower means than softmax over 128 tokens"
        " and more, but for cosFormer over 512; normalised attention and the quasi-LSTM are shown to be worse"
        " over 128 and 512 ([the table](#causal-attention-by-length)).",
    ),
    Situation(
        "Longer inputs than those of training",
        (),
        (("attention", "softplus"), ("attention", "cosformer")),
        "With `model=transformer(position=rope)`.",
    ),
    Situation(
        "Images: fewer pairs than all pairs of tokens",
        ("attention-images",),
        (("attention", "cswin"), ("attention", "axial"), ("attention", "rala"), ("attention", "inline"),
         ("attention", "soft"), ("layers", "iformer"), ("layers", "raft_mlp")),
    ),
    Situation(
        "Few images",
        (),
        (("attention", "convit"), ("models", "convit"), ("models", "spartan"), ("theory", "dsd")),
    ),
    Situation(
        "Backbones for images",
        (),
        (("models", "cswin"), ("models", "iformer"), ("models", "illama"), ("models", "axial"),
         ("models", "raft_mlp"), ("models", "maxim"), ("models", "revcol"), ("models", "activator"),
         ("models", "terminator"), ("models", "edge_moe")),
    ),
    Situation(
        "Cheaper or smaller layers",
        (),
        (("layers", "acm"), ("layers", "kat"), ("layers", "activator"), ("layers", "snnk"),
         ("attention", "bivit"), ("layers", "binary_linear"), ("attention", "subsampled"),
         ("models", "attention_supernet")),
        "`layers.pack` keeps one bit for each weight of a model with `layers=binary_linear`.",
    ),
    Situation(
        "Layers with a guarantee",
        (),
        (("layers", "orthogonal_conv"), ("layers", "layer_norm"), ("attention", "power")),
        "`attention=power` becomes a model of sums and products only, for encrypted inputs.",
    ),
    Situation(
        "What a layer knows of its input and of the label",
        (),
        (("probe", "information_plane"), ("probe", "ebab"), ("probe", "adaptive_kde"), ("probe", "lossy_mi")),
        "`probe.InformationPlane` follows the layers of a model through training with any of them.",
    ),
    Situation(
        "Learning without backpropagation, and why attention learns what it learns",
        (),
        (("train", "counter_current"), ("train", "hebbian"), ("theory", "multitasking_hopfield"),
         ("theory", "attention_svm"), ("theory", "random_feature_attention"),
         ("theory", "softmax_regression")),
    ),
)  # fmt: skip

BY_LENGTH = (
    "Every attention that a causal model can have, in a transformer of 2 blocks, 32 features and 2 heads,",
    "trained for equally many steps in each column, 3 seeds: bits per byte of text, of which fewer are",
    "better, and the share of four values recalled, of which more are. Columns are not to be compared",
    "with each other: longer texts had fewer steps, 2,048 tokens in each, one sequence at least. Recall",
    "has settings with which softmax learns it. Among 12 tokens keys stand before their values, and one",
    "layer has to bind them for the next, in 2,000 steps of 128 sequences; over 128 tokens each pair is",
    "one token, in 600 steps of 16. Over 512 and 2,048 tokens the model has 1 block, 64 features and one",
    "head, which sees 800 and 500 sequences, one a step. 800 were chosen after 300 had left softmax at 0.80;",
    "over 2,048 its three seeds come to 0.70, 0.95 and 1. Over 8,192 tokens recall is not compared: softmax",
    "alone did not learn it in 300 steps, which took five minutes. Bold marks differences from softmax that",
    "the comparison shows. On",
    "text the quasi-LSTM has 1.6 times the weights of the others, with `expansion=1` 1.1 times. Tensor",
    "attention, whose time and memory grow with the cube of the length, is compared on the shortest",
    "inputs only; attention on grids of tokens, which is not causal, is not here.",
)
