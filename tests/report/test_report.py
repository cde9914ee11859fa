"""The report's file: complete, safe, self-contained, whatever the results."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from logitkit.comparison.result import finite
from logitkit.errors import InputError
from logitkit.report import ranking_figure, write_report
from logitkit.report.page import render
from logitkit.report.palette import ARMS_LIGHT, colour, dark_of, symbol
from logitkit.report.recipes import python_call
from logitkit.report.study import Study
from report.results import results

NASTY = [
    "loss=cross_entropy",
    "loss=</script><script>alert(1)</script>",
    'loss="><img src=x onerror=alert(2)>',
]
SECTIONS = ["ranking", "cost", "curves", "reliability", "ood", "recipes", "reproduce", "method"]


class Page(HTMLParser):
    """Every tag with its attributes, every text outside scripts and styles, and every script."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.scripts, self.open = "", [], ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.open = ""

    def handle_data(self, data):
        if self.open == "script":
            self.scripts[-1] += data
        elif self.open != "style":
            self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def sections(self):
        return [attrs["id"] for attrs in self.all("section")]


def page(*args, **kwargs):
    return Page(render(Study(results(*args, **kwargs))))


def figures(found):
    """The figures of a page, by what each shows."""
    data = [script for script in found.scripts if script.startswith('{"data"')]
    return [json.loads(text) for text in data]


def test_everything_is_there_in_order(tmp_path):
    path = write_report(results(["better", "worse"]), tmp_path / "report.html")
    found = Page(path.read_text())
    assert found.sections() == SECTIONS
    assert len(figures(found)) == 3 + 2 * 3
    assert path.stat().st_size < 5.5e6
    assert list(tmp_path.iterdir()) == [path]
    for verdict in ("better", "worse", "reference"):
        assert verdict in found.text


def test_the_file_loads_nothing():
    source = render(Study(results()))
    found = Page(source)
    for _, attrs in found.tags:
        assert "src" not in attrs
        assert (attrs.get("href") or "#").startswith(("#", "data:"))
    styles = re.findall(r"<style>(.*?)</style>", source, re.DOTALL)
    assert styles
    assert not any("url(" in style or "@import" in style for style in styles)
    policy = next(a["content"] for a in found.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert source.count("plotly.js v") == 1


def test_user_text_is_escaped():
    name = "<script>alert(3)</script>&.csv"
    plain = page(["better", "worse"], labels=["loss=a", "loss=b", "loss=c"], tune=2)
    nasty = page(["better", "worse"], labels=NASTY, data=name, tune=2)
    assert [tag for tag, _ in nasty.tags if tag != "wbr"] == [tag for tag, _ in plain.tags if tag != "wbr"]
    assert not nasty.all("img")
    assert name in nasty.text
    for label in NASTY:
        assert label.removeprefix("loss=") in nasty.text
    assert not any("onerror" in attrs for _, attrs in nasty.tags)


def test_plots_show_labels_as_text():
    for found in figures(page(["better", "worse"], labels=NASTY)):
        assert "<img" not in json.dumps(found)
        assert "<script" not in json.dumps(found)


def test_regression_has_no_reliability_and_no_histograms():
    found = page(["no difference shown"], task="regression")
    assert found.sections() == [s for s in SECTIONS if s not in ("reliability", "ood")]
    assert len(figures(found)) == 3
    assert "#ood" not in [a.get("href") for a in found.all("a")]


@pytest.mark.parametrize(
    "case",
    [
        {"verdicts": []},
        {"verdicts": ["too few runs"], "seeds": 1},
        {"verdicts": ["too few runs"], "missing": 6},
        {"verdicts": ["too few runs"], "diverged": {0: 3}},
        {"verdicts": ["no difference shown", "too few runs"], "diverged": {2: 3}, "missing": 1},
        {"verdicts": ["better"] * 29},
    ],
    ids=["one arm", "one seed", "nothing finished", "no reference", "an arm without result", "30 arms"],
)
def test_odd_studies_make_a_page(case):
    made = results(**case)
    source = render(Study(made))
    assert source == render(Study(json.loads(json.dumps(finite(made)))))
    found = Page(source)
    assert "NaN" not in "".join(found.scripts[1:-2]) + found.text
    assert {"ranking", "recipes", "method"} <= set(found.sections())


def test_ranking_figure_orders_arms_and_marks_seeds():
    made = results(["better", "worse"], seeds=4)
    figure = ranking_figure(made)
    assert [t.strip() for t in figure.layout.yaxis.ticktext] == [
        "loss_1",
        "cross_entropy (reference)",
        "loss_2",
    ]
    seeds = [trace for trace in figure.data if trace.marker.size == 5.5]
    assert [len(trace.x) for trace in seeds] == [4, 4, 4]
    assert figure.data[0].line.color == colour(1)


def test_intervals_stay_inside_what_the_metric_can_be():
    made = results(["no difference shown"])
    made["ranking"][0] |= {"low": -0.4, "high": 1.8}
    lines = [trace for trace in ranking_figure(made).data if trace.mode == "lines"]
    assert list(lines[0].x) == [0.0, 1.0]


def test_arms_differ_in_colour_or_symbol():
    assert len({(colour(arm), symbol(arm)) for arm in range(64)}) == 64
    assert all(shade in dark_of() for shade in ARMS_LIGHT)


def test_recipes_mark_what_varies_and_list_tuned_values():
    source = render(Study(results(["better"], tune=4)))
    assert "<mark>loss: cross_entropy</mark>" in source
    found = Page(source)
    assert "0.01235" in found.text
    assert "as written" in found.text


def test_a_study_started_from_python_is_reproduced_in_python():
    made = results(["better"])
    made["study"]["command"] = "logitkit.compare(...)"
    call = python_call(Study(made))
    assert call in Page(render(Study(made))).text
    arguments: dict[str, object] = {}
    exec(
        call.replace("import logitkit", "").replace("logitkit.compare(", "arguments.update("),
        {"arguments": arguments},
    )
    assert arguments == {
        "data": "digits", "loss": ["cross_entropy", "loss_1"], "seeds": 3, "metric": "accuracy",
    }  # fmt: skip


def test_the_reports_folder_must_be_writable(tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        write_report(results(), tmp_path)
