"""The grammar: canonical names, and one clear sentence for each mistake."""

from __future__ import annotations

import pytest

from logitkit import data
from logitkit.data.spec import parse
from logitkit.errors import InputError


def test_canonical_name_is_the_same_however_it_was_written() -> None:
    spellings = ("digits+noise=0.4+imbalance=10", "digits+imbalance=10.0+noise=0.40")
    assert {parse(s).name for s in spellings} == {"digits+imbalance=10+noise=0.4"}
    assert data.load("digits", noise=0.4, imbalance=10).name == "digits+imbalance=10+noise=0.4"
    assert data.load("mixture:dim=4,classes=3,n=90+seed=2").name == "mixture:n=90,classes=3,dim=4+seed=2"


def test_a_canonical_name_loads_the_same_data() -> None:
    first = data.load("mixture:dim=4,classes=3,n=90,separation=2.50+limit=50+seed=2")
    assert data.load(first.name).fingerprint == first.fingerprint


def test_plus_and_colon_in_file_names(tmp_path) -> None:
    path = tmp_path / "a+b:c.csv"
    path.write_text("x,y\n1,p\n2,q\n3,p\n")
    assert data.load(f"{path}:y+limit=2").class_names == ("p", "q")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("digit", "no data 'digit'. Did you mean 'digits'?"),
        ("digits+noize=0.1", "unknown option 'noize'. Did you mean 'noise'?"),
        ("digits+noise=1", "noise=1 must be a fraction"),
        ("digits+noise=-0.1", "noise=-0.1 must be a fraction"),
        ("digits+noise=nan", "noise=nan must be a number"),
        ("digits+noise=much", "noise=much must be a number"),
        ("digits+noise_type=pairs", "Did you mean 'pair'?"),
        ("digits+imbalance=0.5", "at least 1"),
        ("digits+limit=0", "at least 1"),
        ("digits+limit=2.5", "whole number"),
        ("digits+size=16", "+size has no effect on digits"),
        ("iris+length=16", "+length has no effect on iris"),
        ("digits+task=regression", "+task has no effect on digits"),
        ("diabetes+noise=0.1", "+noise is for classification"),
        ("recall+imbalance=2", "+imbalance is for classification"),
        ("digits:8", "takes no arguments"),
        ("mixture:clases=3", "no argument 'clases'. Did you mean 'classes'?"),
        ("mixture:classes", "key=value"),
        ("mixture:classes=three", "whole number"),
        ("mixture:classes=1", "classes=1 must be at least 2"),
        ("mixture:flip=1.5", "between 0 and 1"),
        ("modular:operation=ad", "Did you mean 'add'?"),
        ("shapes:classes=99", "at most 10"),
        ("recall:vocab=8", "fewer keys"),
        ("nowhere/table.csv:y", "there is no file nowhere/table.csv"),
        ("nowhere/images", "no file or folder nowhere/images"),
        ("model.pkl", "is a pickle"),
        ("model.pt", "is a pickle"),
        ("model.joblib", "is a pickle"),
        ("openml:iris", "by its number"),
        ("text:stdlb", "Did you mean 'stdlib'?"),
        ("", "names no source"),
    ],
)
def test_mistakes_are_explained(spec: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        data.load(spec)
    message = str(caught.value)
    assert says in message
    assert "\n" not in message
    assert message.endswith((".", "?"))


def test_other_objects_are_refused() -> None:
    with pytest.raises(InputError, match="not int"):
        data.load(3)
