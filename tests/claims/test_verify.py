"""The order in which several claims run at once, and that they all run."""

import json

from logitkit.claims.verify import longest_first, select, verify


def test_the_longest_claims_come_first_and_unknown_ones_before_them(tmp_path):
    claims = select(["softmax"])
    for seconds, each in zip((1.0, 5.0), claims, strict=False):
        path = tmp_path / each.room / f"{each.part}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"seconds": seconds}))
    order = longest_first(claims, tmp_path)
    known = [each for each in order if each in claims[:2]]
    assert known == [claims[1], claims[0]]
    assert order[: len(claims) - 2] == claims[2:]
    assert longest_first(claims, None) == claims


def test_claims_that_run_at_once_are_all_written(tmp_path):
    names = ["two_pass", "dbnorm", "toptwo"]
    found = verify(names, quick=True, jobs=2, folder=tmp_path)
    assert {each.part for each in found} == set(names)
    assert {path.stem for path in tmp_path.glob("*/*.json")} == set(names)
