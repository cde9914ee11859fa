"""Run the comparisons behind docs/comparisons.md, or some of them, and keep their numbers.

python docs/reports/run.py [NAME ...]            # then: make docs

Each is what `logitkit compare` does; the HTML report of one is written with `--html FOLDER`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import logitkit
from logitkit.comparison.result import finite

FOLDER = Path(__file__).parent
ROBUST = [
    "ce", "ce(label_smoothing=0.1)", "focal", "comp_sum(tau=1.5)", "comp_sum(tau=1.7)", "comp_sum(tau=2.0)",
    "ldr", "aldr", "z_loss", "bias_loss", "dco",
]  # fmt: skip
ANGULAR = ["linear", "cosine", "normalized_softmax", "madacos", "ebv"]

CAUSAL = [
    "softmax", "sigmoid", "softplus", "power", "selective", "entropy_guided", "hopfield", "subsampled",
    "linear", "dsf", "qlstm", "cosformer", "lolcats",
]  # fmt: skip
# Length -> steps of the comparisons of attention by length: 2,048 tokens in each, one sequence at least.
STEPS = {128: 200, 512: 150, 2048: 100, 8192: 20}


class Report(NamedTuple):
    """question: what a reader wants to know; settings: of `logitkit.compare`."""

    question: str
    settings: dict[str, Any]


REPORTS = {
    "label-noise-20": Report(
        "A fifth of the training labels is wrong: which loss?",
        {"data": "digits+noise=0.2", "loss": ROBUST, "seeds": 10, "tune": 3},
    ),
    "label-noise-40": Report(
        "Two fifths of the training labels are wrong: which loss?",
        {"data": "digits+noise=0.4", "loss": ROBUST, "seeds": 10, "tune": 3},
    ),
    "long-tail": Report(
        "The rarest class has a fiftieth of the rows of the most frequent: which loss?",
        {"data": "digits+imbalance=50", "loss": ROBUST, "seeds": 10, "tune": 3,
         "metric": "balanced_accuracy"},
    ),
    "long-tail-heads": Report(
        "The same long tail: which head?",
        {"data": "digits+imbalance=50", "head": [*ANGULAR, "naive_bayes"], "seeds": 10,
         "metric": "balanced_accuracy"},
    ),
    "calibration": Report(
        "Probabilities matter: which loss has the best likelihood without any calibration?",
        {"data": "digits", "loss": ROBUST, "seeds": 10, "metric": "nll"},
    ),
    "many-classes": Report(
        "Two hundred classes, eighteen images of each: which head?",
        {"data": "glyphs:n=6000,classes=200,size=16", "model": "cnn(width=8)", "head": ANGULAR, "seeds": 3,
         "epochs": 15},
    ),
    "ordinal": Report(
        "Classes are levels of one scale: does a head that knows their order help?",
        {"data": "ratings:n=1500+task=ordinal", "head": ["linear", "ordinal", "fourier"], "seeds": 10},
    ),
    "regression-diabetes": Report(
        "A number, from few and noisy rows: regression or classification over bins?",
        {"data": "diabetes", "seeds": 10,
         "head": ["linear", "histogram", "histogram(target=two_hot)", "fourier_regression"]},
    ),
    "regression-friedman": Report(
        "A number, from 2,000 rows of a smooth function: regression or classification over bins?",
        {"data": "friedman:n=2000", "seeds": 5,
         "head": ["linear", "histogram", "histogram(target=two_hot)", "fourier_regression"]},
    ),
    "regression-experts": Report(
        "The same 2,000 rows: does a mixture of experts predict them better, and how many should be active?",
        {"data": "friedman:n=2000", "seeds": 5,
         "head": ["linear", "topk_moe(active=1)", "topk_moe", "topk_moe(active=4)", "fourier_regression"]},
    ),
    "retrieval": Report(
        "Images of classes that training never saw are to be found: which head?",
        {"data": "glyphs:n=4000,classes=100,size=16+task=retrieval", "model": "cnn(width=8)", "head": ANGULAR,
         "seeds": 3, "epochs": 15},
    ),
    "hubs": Report(
        "The same images: do similarities that are normalised against hubs find more?",
        {"data": "glyphs:n=4000,classes=100,size=16+task=retrieval", "model": "cnn(width=8)", "seeds": 3,
         "epochs": 15, "calibrate": ["none", "dbnorm", "dbnorm(beta1=20, beta2=20)"]},
    ),
    "search": Report(
        "A query is to find the one of 1,000 documents that answers it: trained how?",
        {"data": "passages:n=5000", "seeds": 5, "algorithm": ["standard", "ar2", "ar2(lam=0)"]},
    ),
    "search-cost": Report(
        "A cross-encoder scores all of 1,000 documents, or only 20, 50 or 100 of them: what is lost?",
        {"data": "passages", "head": "cross", "seeds": 3, "epochs": 15, "lr": 3e-3,
         "search": ["exact", "anncur(anchors=10, budget=20)", "anncur(anchors=25, budget=50)", "anncur"]},
    ),
    "bags": Report(
        "Labels are only known as the mean of eight rows: how much should each row fit its bag's mean?",
        {"data": "digits+bags=8", "seeds": 10, "epochs": 60,
         "loss": ["aggregate(base=ce, rho=0)", "aggregate(base=ce, rho=0.2)", "aggregate(base=ce)",
                  "aggregate(base=ce, rho=1)"]},
    ),
    "crowd": Report(
        "Each row was labelled by some twenty people of very different skill: how to make labels of that?",
        {"data": "crowd:n=2000", "votes": ["majority", "dawid_skene", "toptwo"], "seeds": 10},
    ),
    "concepts": Report(
        "Features are similarities to 64 concepts, of which a class has three: which head?",
        {"data": "concepts", "model": "linear", "seeds": 10, "lr": 1e-2,
         "head": ["linear", "sparse_cbm", "sparse_cbm(mode=l1)", "sparse_cbm(mode=contrastive)"]},
    ),
    "crowd-levels": Report(
        "Six of thirty people, strict and lenient, put each row on one of five levels: how to make labels?",
        {"data": "ratings:n=2000,judges=30,each=6,severity=1.5+task=crowd",
         "votes": ["majority", "dawid_skene", "faceted_rasch", "faceted_rasch(infit_bounds=(0.5,1.5))"],
         "seeds": 10},
    ),
    "extreme": Report(
        "Several relevant labels out of 20,000, the most that trains in minutes here: which loss?",
        {"data": "extreme:n=40000,classes=20000,groups=2000", "model": "mlp(hidden=(256, 64))",
         "head": "normalized_softmax(temperature=0.1)", "batch_size": 256, "lr": 3e-3, "epochs": 5,
         "seeds": 3, "loss": ["multi_positive", "decoupled_softmax", "binary_cross_entropy"]},
    ),
    "language-model": Report(
        "A byte-level language model on Python's standard library, 500 steps: which loss?",
        {"data": "text:stdlib+limit=20000", "model": "transformer", "batch_size": 32, "steps": 500,
         "lr": 3e-3, "seeds": 3, "loss": ["ce", "cut_cross_entropy", "focal", "ldr", "z_loss"]},
    ),
    "few-rows": Report(
        "Ninety labelled images, nine of each class: which head?",
        {"data": "digits+limit=150", "head": [*ANGULAR, "naive_bayes"], "seeds": 10},
    ),
    "one-class": Report(
        "Only rows of one class are known: which detector finds the others?",
        {"data": "digits+task=oneclass", "model": "linear", "detect": ["mahalanobis", "hyp_oc"], "seeds": 10},
    ),
    "few-shot-segmentation": Report(
        "Shapes that training never saw are to be segmented from one or five labelled scenes: how?",
        {"data": "scenes:n=600,size=32+task=segmentation", "model": "cnn(width=16,pools=1)", "epochs": 15,
         "adapt": ["prototype", "repri"], "seeds": 5},
    ),
    "depth": Report(
        "The depth of every pixel of scenes: which head, and soft or hard tokens?",
        {"data": "scenes:n=500,size=32+task=depth", "model": "cnn(width=16,pools=1)", "lr": 3e-3,
         "epochs": 15, "seeds": 5, "head": ["linear", "soft_token", "soft_token(hard=True)"]},
    ),
    "boxes": Report(
        "A detector finds each of many crowded objects five times: which suppression?",
        {"data": "detections", "seeds": 5,
         "calibrate": ["soft_nms(method=hard,iou_threshold=0.3)", "soft_nms(method=hard,iou_threshold=0.5)",
                       "soft_nms(method=hard,iou_threshold=0.6)", "soft_nms(method=linear)", "soft_nms"]},
    ),
    "answers": Report(
        "Sums learned from few examples: how to draw answers that are right?",
        {"data": "strings:n=2000,operation=add,length=2", "model": "transformer(dim=64)", "lr": 3e-3,
         "epochs": 20, "seeds": 3, "metric": "exact",
         "calibrate": ["none", "temperature", "utility_probability", "utility_probability(k=1)"]},
    ),
    "unlearning": Report(
        "A model that knows 200 facts is to forget 20 of them and keep the others: how?",
        {"data": "facts", "model": "transformer(dim=64)", "lr": 3e-3, "epochs": 100, "seeds": 3,
         "adapt": ["gradient_ascent", "none", "flat", "flat(divergence=tv)", "grad_diff", "npo", "dpo"]},
    ),
    "noisy-sequences": Report(
        "Strings are to be reversed, and a fifth of the target tokens is wrong: which loss?",
        {"data": "strings:length=6+noise=0.2", "model": "transformer", "epochs": 20, "seeds": 5,
         "metric": "accuracy", "loss": ["ce", "ce(label_smoothing=0.1)", "comp_sum(tau=1.7)", "ldr", "eisl"]},
    ),
    **{
        f"attention-text-{length}": Report(
            f"A byte-level language model of {length:,} tokens, {steps} steps: which attention?",
            {"data": f"text:stdlib+length={length}+limit={max(40, 131072 // length)}",
             "model": "transformer(dim=32,heads=2)", "batch_size": max(1, 2048 // length), "lr": 3e-3,
             "steps": steps, "seeds": 3, "attention": CAUSAL},
        )
        for length, steps in STEPS.items()
    },
    "attention-quasi-lstm": Report(
        "The quasi-LSTM with 1.1 times the weights of softmax attention, 512 tokens: is it still ahead?",
        {"data": "text:stdlib+length=512+limit=256", "model": "transformer(dim=32,heads=2)", "batch_size": 4,
         "lr": 3e-3, "steps": 150, "seeds": 5, "attention": ["softmax", "qlstm(expansion=1)"]},
    ),
    "attention-recall-12": Report(
        "Four values are to be recalled by their keys, which stand before them: which attention?",
        {"data": "recall:n=20000,vocab=32,pairs=4,length=12", "model": "transformer(dim=32,heads=2)",
         "batch_size": 128, "lr": 3e-3, "steps": 2000, "seeds": 3, "metric": "accuracy",
         "attention": [*CAUSAL, "qlstm(expansion=1)", "tensor"]},
    ),
    "attention-recall-128": Report(
        "Four pairs of key and value, each one token, are to be recalled over 128 tokens: which attention?",
        {"data": "recall:n=20000,vocab=32,pairs=4,length=128,returns=8,form=pairs",
         "model": "transformer(dim=32,heads=2)", "batch_size": 16, "lr": 3e-3, "steps": 600, "seeds": 3,
         "metric": "accuracy", "attention": [*CAUSAL, "qlstm(expansion=1)"]},
    ),
    **{
        f"attention-recall-{length}": Report(
            f"Four pairs of key and value, each one token, are to be recalled over {length:,} tokens: which"
            " attention?",
            {"data": f"recall:n={rows},vocab=10,pairs=4,length={length},returns={length // 8},form=pairs",
             "model": "transformer(dim=64,heads=1,depth=1,position=none)", "batch_size": 1, "lr": 2e-3,
             "steps": steps, "seeds": 3, "metric": "accuracy", "attention": [*CAUSAL, "qlstm(expansion=1)"]},
        )
        for length, rows, steps in ((512, 1400, 800), (2048, 850, 500))
    },
    "attention-images": Report(
        "Digits of 16 patches: which attention?",
        {"data": "digits", "model": "vit(dim=32,depth=2)", "seeds": 3,
         "attention": ["softmax", "sigmoid", "linear", "inline", "rala", "cswin", "axial", "soft", "convit"]},
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the comparisons behind docs/comparisons.md.")
    parser.add_argument("names", nargs="*", help=", ".join(REPORTS))
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--html", type=Path, default=None, help="folder for the HTML reports")
    arguments = parser.parse_args()
    for name in arguments.names or REPORTS:
        with tempfile.TemporaryDirectory() as folder:
            result = logitkit.compare(**REPORTS[name].settings, jobs=arguments.jobs, folder=folder)
            if arguments.html is not None:
                result.report(arguments.html / f"{name}.html")
        found = finite(result.to_dict())
        found["study"]["winner"] = None
        for run in found["runs"]:  # what the tables do not show is made again by running it again
            for key in ("curve", "details", "recipe", "split"):
                run.pop(key)
        (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        print(f"wrote {FOLDER / name}.json", flush=True)


if __name__ == "__main__":
    main()
