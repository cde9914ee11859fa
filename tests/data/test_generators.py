"""Drawn data: what the annotations say is what the examples show."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC

from logitkit import data
from logitkit.data.base import IGNORE, Table
from logitkit.data.generators import GENERATORS, generate
from logitkit.data.generators.shapes import SHAPES, boxes, render
from logitkit.errors import InputError


def test_every_generator_gives_a_sound_data_set_that_splits() -> None:
    for name, function in GENERATORS.items():
        small = ",".join(f"{k}={v}" for k, v in {"n": 600, "classes": 4, "groups": 3}.items()
                         if k in inspect.signature(function).parameters)  # fmt: skip
        first = generate(name, small)
        assert first.fingerprint == generate(name, small).fingerprint, name
        assert first.fingerprint != generate(name, small, seed=1).fingerprint, name
        assert function.__doc__, name
        assert all(len(value) == len(first) for value in first.extras.values()), name
        if isinstance(first.x, torch.Tensor):
            assert first.x.isfinite().all(), name
            assert first.x.dtype == (torch.int64 if first.kind == "tokens" else torch.float32), name
        if first.kind == "image":
            assert first.x.min() >= 0, name
            assert first.x.max() <= 1, name
        if first.kind == "tokens":
            assert first.x.min() >= 0, name
            assert first.x.max() < first.vocabulary, name
        if first.task == "classification":
            assert first.y.min() >= 0, name
            assert first.y.max() < first.num_classes, name
        split = data.split(first, 0)
        assert len(split.train) > len(split.test) > 0, name
        assert data.Preprocessor().fit(split.train).transform(split.test).isfinite().all(), name


def test_moons_lie_on_their_half_circles() -> None:
    d = generate("moons", "sd=0")
    up, down = d.x[d.y == 0], d.x[d.y == 1]
    assert torch.allclose(up.norm(dim=1), torch.ones(len(up)), atol=1e-5)
    assert (up[:, 1] >= -1e-6).all()
    assert torch.allclose((down - torch.tensor([1, 0.5])).norm(dim=1), torch.ones(len(down)), atol=1e-5)
    assert (down[:, 1] <= 0.5 + 1e-6).all()


def test_mixture_has_the_covariance_and_the_separation_it_says() -> None:
    d = generate("mixture", "n=20000,classes=40,dim=16,separation=6,correlation=0.5,block=4")
    residual = d.x - d.extras["mean"]
    expected = torch.block_diag(*[torch.full((4, 4), 0.5)] * 4).fill_diagonal_(1)
    assert torch.allclose(torch.cov(residual.T), expected, atol=0.05)
    centres = torch.stack([d.extras["mean"][d.y == k][0] for k in range(40)])
    apart = torch.pdist(centres).square().mean().sqrt()
    assert float(apart) == pytest.approx(6, rel=0.1)


def test_mixture_label_noise_is_everywhere_and_tail_is_long() -> None:
    d = generate("mixture", "n=20000,classes=10,flip=0.3,tail=1")
    assert float((d.y != d.extras["y_true"]).float().mean()) == pytest.approx(0.27, abs=0.01)
    counts = d.extras["y_true"].bincount().double()
    ideal = 1 / torch.arange(1, 11).double()
    assert torch.allclose(counts / counts.sum(), ideal / ideal.sum(), atol=0.003)


def test_confusions_in_a_hierarchy_stay_within_groups() -> None:
    d = generate("hierarchy", "n=2000,groups=5,classes=25,separation=20,spread=2")
    guess = torch.from_numpy(KNeighborsClassifier(5).fit(d.x[:1000], d.y[:1000]).predict(d.x[1000:]))
    wrong = guess != d.y[1000:]
    assert wrong.float().mean() > 0.2
    assert (guess % 5 == d.extras["group"][1000:]).float().mean() > 0.99


def test_tabular_needs_the_informative_columns_and_no_other() -> None:
    d = generate("tabular", "n=3000,dim=20,informative=4,flip=0")
    z = np.concatenate([d.x[:, :4], np.einsum("ni,nj->nij", d.x[:, :4], d.x[:, :4]).reshape(-1, 16)], axis=1)
    enough = LogisticRegression(C=100, max_iter=500).fit(z[:2000], d.y[:2000]).score(z[2000:], d.y[2000:])
    rest = LogisticRegression().fit(d.x[:2000, 4:], d.y[:2000]).score(d.x[2000:, 4:], d.y[2000:])
    assert enough > 0.97
    assert rest < 0.6


def test_friedman_is_its_formula() -> None:
    d = generate("friedman", "n=4000,nuisance=3,sd=2")
    a, b, c, e, f = d.x.double()[:, :5].T.numpy()
    oracle = 10 * np.sin(np.pi * a * b) + 20 * (c - 0.5) ** 2 + 10 * e + 5 * f
    np.testing.assert_allclose(d.extras["mean"].numpy(), oracle, rtol=1e-4)
    assert float((d.y - d.extras["mean"]).std()) == pytest.approx(2, rel=0.05)


def test_linear_is_recovered_by_least_squares() -> None:
    d = generate("linear", "n=5000,dim=6,sd=0.1")
    assert np.linalg.norm(LinearRegression().fit(d.x, d.y).coef_) == pytest.approx(1, abs=0.01)


def test_bimodal_probabilities_are_those_of_the_labels() -> None:
    d = generate("bimodal", "n=20000,bins=10")
    p = d.extras["probability"]
    assert torch.allclose(p.sum(dim=1), torch.ones(len(p)), atol=1e-5)
    chosen = p.gather(1, d.y[:, None])[:, 0]
    surprise, entropy = -chosen.log().mean(), -torch.xlogy(p, p).sum(dim=1).mean()
    assert float(surprise) == pytest.approx(float(entropy), rel=0.02)
    at = (d.x - torch.tensor([-0.5, 0.5])).norm(dim=1) < 0.15
    share = d.y[at].bincount(minlength=10) / at.sum()
    assert share[[1, 2, 3]].sum() == pytest.approx(0.5, abs=0.1)
    assert share[[6, 7, 8]].sum() == pytest.approx(0.5, abs=0.1)


def test_mixed_has_every_kind_of_column_and_signal() -> None:
    d = generate("mixed", "n=4000,missing=0.1")
    assert isinstance(d.x, Table)
    assert {c.kind for c in d.x.columns.values()} == {"number", "category", "date"}
    assert np.isnan(d.x.columns["income"].values).mean() == pytest.approx(0.1, abs=0.02)
    split = data.split(d, 0)
    pre = data.Preprocessor().fit(split.train)
    model = LogisticRegression(max_iter=500).fit(pre.transform(split.train), split.train.y)
    majority = split.test.y.bincount().max() / len(split.test)
    assert model.score(pre.transform(split.test), split.test.y) > majority + 0.03


def test_shape_masks_and_boxes_are_those_of_the_pixels() -> None:
    d = generate("shapes", "n=100,classes=10,sd=0")
    for image, mask, box in zip(d.x[:, 0], d.extras["mask"], d.extras["box"], strict=True):
        assert torch.equal(image > image[~mask].max(), mask)
        rows, columns = mask.nonzero(as_tuple=True)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_shapes_have_the_areas_of_their_formulas() -> None:
    radius = 50.0
    k = torch.arange(10)
    masks = render(k, torch.full((10, 2), 64.0), torch.full((10,), radius), torch.full((10,), 0.3), 128)
    area = dict(zip(SHAPES, (masks.sum(dim=(1, 2)) / radius**2).tolist(), strict=True))
    expected = {
        "disc": torch.pi, "square": 1.6**2, "triangle": 0.58 * 1.6**2, "cross": 4 * 0.56 - 0.56**2,
        "ring": torch.pi * (1 - 0.36), "bar": 4 * 0.3 - 0.0, "ell": 1.6**2 - 1.1 * 1.1,
        "frame": 1.6**2 - 1, "star": torch.pi * (0.36 + 0.08),
    }  # fmt: skip
    for name, value in expected.items():
        assert area[name] == pytest.approx(value, rel=0.03), name


def test_no_shape_is_cut_off_by_the_border() -> None:
    d = generate("shapes", "n=400,classes=10,size=64")
    e = d.extras
    wide = render(d.y, e["centre"] + 32, e["radius"], e["angle"], 128)
    assert torch.equal(wide.sum(dim=(1, 2)), e["mask"].sum(dim=(1, 2)))


def test_a_cue_agrees_as_often_as_it_says_and_is_in_the_corner() -> None:
    d = generate("shapes", "n=2000,classes=5,cue=0.6")
    assert float((d.extras["cue"] == d.y).float().mean()) == pytest.approx(0.6 + 0.4 / 5, abs=0.03)
    assert torch.allclose(d.x[:, 0, 0, 0] * 4, d.extras["cue"].float())


def test_empty_masks_have_empty_boxes() -> None:
    assert boxes(torch.zeros(2, 5, 5, dtype=torch.bool)).tolist() == [[0] * 4] * 2


def test_attributes_tell_the_class_and_the_colour_shows() -> None:
    d = generate("attributes", "n=400,classes=20,sd=0")
    patterns, which = torch.unique(d.extras["attributes"], dim=0, return_inverse=True)
    assert len(patterns) == 20
    assert len(torch.unique(torch.stack([which, d.y]), dim=1).T) == 20
    for image, mask, y in zip(d.x, d.extras["mask"], d.y, strict=True):
        r, g, b = (image * mask).sum(dim=(1, 2)) / mask.sum()
        colour = (
            "yellow"
            if min(r, g) > 1.5 * b
            else ("red", "green", "blue")[int(torch.stack([r, g, b]).argmax())]
        )
        assert d.class_names[y].startswith(colour)


def test_scene_annotations_agree_with_each_other() -> None:
    d = generate("scenes", "n=60,classes=4,most=5,sd=0")
    e = d.extras
    for i in range(60):
        for m in range(5):
            seen = e["instance"][i] == m
            if not seen.any():
                assert e["labels"][i, m] == -1
                assert e["boxes"][i, m].tolist() == [0] * 4
                continue
            assert e["segmentation"][i][seen].unique().tolist() == [e["labels"][i, m] + 1]
            assert len(e["depth"][i][seen].unique()) == 1
            assert len(d.x[i, 0][seen].unique()) == 1
            rows, columns = seen.nonzero(as_tuple=True)
            assert e["boxes"][i, m].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        order = [float(e["depth"][i][e["instance"][i] == m].mean()) for m in e["instance"][i].unique()]
        assert order == sorted(order, reverse=True)
        areas = (e["instance"][i].flatten() + 1).bincount(minlength=6)[1:]
        assert e["labels"][i, areas.argmax()] == d.y[i]
    assert ((e["segmentation"] == 0) == (e["depth"] == 1)).all()


def test_scene_counts_and_frequencies() -> None:
    d = generate("scenes", "n=400,size=64,fewest=2,most=3,low=0.05,high=0.08,target=count,tail=0.5")
    assert d.task == "regression"
    assert torch.equal(d.y, (d.extras["labels"] >= 0).sum(dim=1).float())
    seen = d.extras["labels"][d.extras["labels"] >= 0].bincount(minlength=6).double()
    ideal = 0.5 ** torch.arange(6).double()
    assert torch.allclose(seen / seen.sum(), ideal / ideal.sum(), atol=0.05)


def test_glyphs_of_one_class_resemble_each_other() -> None:
    d = generate("glyphs", "n=400,classes=10,jitter=0.5,sd=0.05")
    x = d.x.flatten(1).numpy()
    assert KNeighborsClassifier(1).fit(x[:300], d.y[:300]).score(x[300:], d.y[300:]) > 0.8
    still = generate("glyphs", "n=20,classes=10,jitter=0,sd=0").x
    assert torch.equal(still[:10], still[10:])
    assert ((still > 0.5).float().mean(dim=(1, 2, 3)) > 0.02).all()


def test_stripes_have_the_period_and_angle_they_say() -> None:
    d = generate("textures", "n=60,size=64,sd=0")
    angles, periods = d.extras["angle"], d.extras["period"]
    for image, angle, period in zip(d.x[::6, 0], angles[::6], periods[::6], strict=True):
        spectrum = torch.fft.fft2(image - image.mean()).abs()
        row, column = (int(i) for i in torch.unravel_index(spectrum.argmax(), (64, 64)))
        frequency = torch.tensor([column if column < 32 else column - 64, row if row < 32 else row - 64]) / 64
        expected = torch.stack([angle.cos(), angle.sin()]) / period
        assert min((frequency - expected).norm(), (frequency + expected).norm()) < 1 / 64


def test_defects_are_where_the_mask_is() -> None:
    broken, sound = (generate("textures", f"n=300,classes=5,sd=0,defect={f}") for f in (0.5, 0))
    mask = broken.extras["defect"]
    assert float(mask.any(dim=(1, 2)).float().mean()) == pytest.approx(0.5, abs=0.1)
    assert torch.equal(broken.x[:, 0][~mask], sound.x[:, 0][~mask])
    assert (broken.x[:, 0][mask] != sound.x[:, 0][mask]).float().mean() > 0.9


def test_marks_are_where_they_say() -> None:
    d = generate("marks", "n=900")
    for image, y, ((r1, c1), (r2, c2)) in zip(
        d.x[:, 0], d.y.tolist(), d.extras["marks"].tolist(), strict=True
    ):
        assert image.nonzero().tolist() == sorted([[r1, c1], [r2, c2]])
        assert y == (0 if r1 == r2 else 1 if c1 == c2 else 2)
        assert max(abs(r1 - r2), abs(c1 - c2)) >= 8


@pytest.mark.parametrize(
    ("operation", "oracle"),
    [("add", lambda a, b: a + b), ("subtract", lambda a, b: a - b), ("multiply", lambda a, b: a * b)],
)
def test_modular_arithmetic(operation: str, oracle) -> None:
    d = generate("modular", f"p=13,operation={operation}")
    rows = d.x.tolist()
    assert len({(a, b) for a, b, _ in rows}) == 169
    assert all(y == oracle(a, b) % 13 for (a, b, _), y in zip(rows, d.y.tolist(), strict=True))
    one_hot = generate("modular", f"p=13,operation={operation},form=onehot")
    assert torch.equal(one_hot.x.view(-1, 2, 13).argmax(dim=2), d.x[:, :2])
    assert one_hot.x.sum() == 2 * 169


@pytest.mark.parametrize(("returns", "form"), [(1, "tokens"), (3, "tokens"), (2, "pairs")])
def test_recall_answers_can_be_found(returns: int, form: str) -> None:
    joined = form == "pairs"
    d = generate("recall", f"n=200,vocab=32,pairs=5,length=30,returns={returns},form={form}")
    first = 5 if joined else 10
    for x, y in zip(d.x.tolist(), d.y.tolist(), strict=True):
        if joined:  # 15 keys from 1 on, 16 values from 16 on
            memory = {1 + (t - 32) // 16: 16 + (t - 32) % 16 for t in x[:5]}
        else:
            memory = dict(zip(x[:10:2], x[1:10:2], strict=True))
        assert len(memory) == 5
        asked = [(token, answer) for token, answer in zip(x, y, strict=True) if answer != IGNORE]
        assert sorted(token for token, _ in asked) == sorted([*memory] * returns)
        assert all(memory[token] == answer for token, answer in asked)
        assert y[:first] == [IGNORE] * first
        assert sum(token != 0 for token in x) == first + 5 * returns
    assert max(d.x.flatten().tolist()) < d.vocabulary == 32 + joined * 15 * 16


@pytest.mark.parametrize("operation", ["copy", "reverse", "sort", "add"])
def test_string_answers(operation: str) -> None:
    d = generate("strings", f"n=300,length=5,operation={operation}")
    for x, y in zip(d.x.tolist(), d.y.tolist(), strict=True):
        end = x.index(10)
        answer = "".join(map(str, y[end:]))
        question = "".join("+" if t == 11 else str(t) for t in x[:end])
        if operation == "add":
            a, b = question.split("+")
            assert answer == f"{int(a) + int(b):06d}"
        else:
            oracle = {"copy": question, "reverse": question[::-1], "sort": "".join(sorted(question))}
            assert answer == oracle[operation]
        assert y[:end] == [IGNORE] * end
        assert x[end + 1 :] == y[end:-1]


def test_crowd_votes_have_the_rates_of_their_model() -> None:
    d = generate("crowd", "n=4000,workers=20,share=0.5,classes=5")
    e = d.extras
    voted = e["votes"] >= 0
    assert float(voted.float().mean()) == pytest.approx(0.5, abs=0.01)
    skill = e["skill"][0]
    right = (((e["votes"] == d.y[:, None]) & voted).sum(dim=0) / voted.sum(dim=0)).numpy()
    np.testing.assert_allclose(right, skill * 0.75 + (1 - skill) / 5, atol=0.05)
    second = (((e["votes"] == e["second"][:, None]) & voted).sum(dim=0) / voted.sum(dim=0)).numpy()
    np.testing.assert_allclose(second, skill * 0.25 + (1 - skill) / 5, atol=0.05)


def test_ratings_fall_with_severity_and_rise_with_the_subject() -> None:
    e = generate("ratings", "n=2000,spammers=0.2").extras
    honest = ~e["spammer"]
    mean = e["ratings"].float().mean(dim=2)
    theta = e["theta"][:, None].expand_as(mean)
    line = LinearRegression().fit(torch.stack([theta[honest], e["severity"][honest]], dim=1), mean[honest])
    assert line.coef_[0] > 0.4
    assert line.coef_[1] == pytest.approx(-line.coef_[0], rel=0.15)
    assert abs(np.corrcoef(theta[~honest], mean[~honest])[0, 1]) < 0.15


def test_extreme_labels_are_distinct_and_of_one_group() -> None:
    d = generate("extreme", "n=500,classes=215,groups=20,most=12")
    for group, labels in zip(d.extras["group"].tolist(), d.y.tolist(), strict=True):
        given = [label for label in labels if label >= 0]
        assert 1 <= len(given) == len(set(given))
        assert labels[: len(given)] == given
        assert {label % 20 for label in given} == {group}
        assert max(given) < 215
    assert (d.y >= 0).sum(dim=1).bincount(minlength=13)[1:11].min() > 25
    small = generate("extreme", "n=100,classes=30,groups=15,most=6")
    assert (small.y >= 0).sum(dim=1).max() == 2


def test_views_are_rotations_of_one_latent_and_hubs_are_near_everything() -> None:
    d = generate("pairs", "n=400,dim=8,sd=0,classes=4,hubs=0.05")
    distance = torch.cdist(d.x, d.x)
    assert torch.allclose(distance, torch.cdist(d.extras["latent"], d.extras["latent"]), atol=2e-2)
    hub = d.extras["hub"]
    assert torch.allclose(torch.pdist(d.extras["view"][~hub]), torch.pdist(d.x[~hub]), atol=2e-2)
    to_all = torch.cdist(d.extras["view"], d.extras["view"]).mean(dim=1)
    assert to_all[hub].mean() < 0.8 * to_all[~hub].mean()


def test_spirals_are_separate_arms() -> None:
    d = generate("spirals", "n=600,sd=0.01")
    assert KNeighborsClassifier(3).fit(d.x[:400], d.y[:400]).score(d.x[400:], d.y[400:]) > 0.95
    assert LinearDiscriminantAnalysis().fit(d.x, d.y).score(d.x, d.y) < 0.8


def test_words_are_all_there_and_halved_by_single_bits_and_two_pairs() -> None:
    d = generate("words", "bits=8", seed=3)
    assert d.x.shape == (256, 8)
    assert len(torch.unique(d.x, dim=0)) == 256
    assert set(d.x.unique().tolist()) == {-1, 1}
    assert 120 <= int(d.y.sum()) <= 128  # what is at the median is below
    pairs = torch.stack([d.x[:, i] * d.x[:, j] for i in range(8) for j in range(i)], dim=1)
    rule = LinearSVC(C=1e4, max_iter=100_000)
    assert rule.fit(torch.cat([d.x, pairs], dim=1), d.y).score(torch.cat([d.x, pairs], dim=1), d.y) == 1
    assert rule.fit(d.x, d.y).score(d.x, d.y) < 1
    with pytest.raises(InputError, match="at most 20"):
        generate("words", "bits=21")


def test_modes_make_clusters_within_a_class() -> None:
    d = generate("mixture", "n=600,classes=2,modes=3,separation=30,dim=8")
    inertia = [KMeans(k, n_init=3, random_state=0).fit(d.x).inertia_ for k in (6, 7)]
    assert inertia[0] == pytest.approx(600 * 8, rel=0.1)


def test_concepts_follow_their_equation() -> None:
    d = generate("concepts", "n=4000,classes=8,concepts=30,relevant=10,each=2,miss=0.25,sd=0.5")
    own, shown = d.extras["attributes"], d.extras["shown"]
    assert torch.equal(own.sum(dim=1), torch.full((4000,), 2.0))
    assert not own[:, 10:].any()
    assert len(own.unique(dim=0)) == 8
    assert len(torch.cat([own, d.y[:, None].float()], dim=1).unique(dim=0)) == 8
    assert not (shown & (own == 0)).any()
    assert abs(shown.sum().item() / own.sum().item() - 0.75) < 0.02
    x = d.x - d.x[:, 10:].mean(dim=1, keepdim=True)  # without what an image has for all texts
    used = own.any(dim=0).nonzero().flatten()
    away = torch.stack([x[shown[:, m], m].mean() - x[~shown[:, m], m].mean() for m in used])
    assert ((away > 1.9) & (away < 4.1)).all()
    assert (x[:, 10:].std(dim=0) - 0.5).abs().max() < 0.05


def test_concepts_need_a_set_for_every_class() -> None:
    with pytest.raises(InputError, match="classes=11 must be at most 10, the sets of 2 out of 5 concepts"):
        generate("concepts", "classes=11,relevant=5,each=2")
