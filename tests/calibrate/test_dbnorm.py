"""Dual inverted softmax against the formula as it is written, and its limits."""

import numpy as np
import pytest
import torch

from logitkit.calibrate import DualDIS, DualIS, inverted_softmax


def matrices(seed=0, gallery=12):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, gallery, generator=g, dtype=torch.float64) for n in (15, 20, 25)]


def test_log_of_the_direct_formula():
    s, queries, items = matrices()
    found = DualIS(0.7, 2.5).fit(queries, items).transform(s)
    direct = (
        np.exp(0.7 * s.numpy()) / np.exp(0.7 * queries.numpy()).sum(0)
        * np.exp(2.5 * s.numpy()) / np.exp(2.5 * items.numpy()).sum(0)
    )  # fmt: skip
    np.testing.assert_allclose(found.exp(), direct, rtol=1e-9)
    single = np.exp(0.7 * s.numpy()) / np.exp(0.7 * queries.numpy()).sum(0)
    np.testing.assert_allclose(inverted_softmax(s, queries, 0.7).exp(), single, rtol=1e-9)


def official():
    """Similarities and banks for the numbers of DBNorm/dbnorm.py in
    github.com/yimuwangcs/Better_Cross_Modal_Retrieval."""
    s = 1.5 * (1.3 * torch.arange(12).double()).sin().view(3, 4)
    queries = 1.5 * (0.7 * torch.arange(20).double()).cos().view(5, 4)
    items = 1.5 * (2.1 * torch.arange(24).double() + 1).sin().view(6, 4)
    return s, queries, items


def test_values_of_the_official_code():
    """IS with each bank at the default betas, whose product is the paper's s'; and db_norm as it is called,
    with the gallery bank in the place of the similarities."""
    s, queries, items = official()
    by_queries = [
        [0.15994268174619902, 0.30874004459897686, 0.2373859239393727, 0.11014456442121505],
        [0.08217859915073844, 0.17562486093115087, 0.3416508051734292, 0.23527071542438147],
        [0.08569767632249968, 0.08408599440400044, 0.2209258525337656, 0.3891669351988491],
    ]
    by_items = [
        [0.010247068937962482, 0.7014278536644319, 0.09712393648672515, 0.0004476260365933778],
        [0.00019232776686799966, 0.024170820966026543, 0.8537827238301962, 0.04155813174401338],
        [0.00024703446851003153, 0.00029765507968271997, 0.06324293053780046, 0.8385082503750413],
    ]
    part = DualIS().fit(queries, items)
    expected = np.array(by_queries) * np.array(by_items)
    np.testing.assert_allclose(part.transform(s).exp(), expected, rtol=1e-9)
    np.testing.assert_allclose(inverted_softmax(s, items, 3.0).exp(), by_items, rtol=1e-9)
    released = [
        [0.13631194653683698, 0.0017057512462755036, 1.4818604536127862e-05, 0.15942971260190508],
        [0.0018667823843180405, 1.3789154226275307e-05, 0.14025080668338713, 0.0019068305335303742],
    ]
    np.testing.assert_allclose(part.transform(items).exp()[:2], released, rtol=1e-9)


def test_dynamic_values_of_the_official_code():
    """qb_norm with each bank, whose only hub is item 3 or 1: the rows it changes, and the others, where its
    factor is s and ours exp(b s)."""
    s, queries, items = official()
    queries[:, 3] += 4
    items[:, 1] += 4
    found = DualDIS().fit(queries, items).transform(s)
    by_items = [0.010247068937962482, 4.309721683453498e-06, 0.09712393648672515, 0.0004476260365933778]
    by_queries = [0.08569767632249968, 0.08408599440400044, 0.2209258525337656, 0.052141341638458516]
    np.testing.assert_allclose(found[0].exp(), by_items * (s[0] / 1.99).exp().numpy(), rtol=1e-9)
    np.testing.assert_allclose(found[1], (3 + 1 / 1.99) * s[1], rtol=1e-9)
    np.testing.assert_allclose(found[2].exp(), by_queries * (3 * s[2]).exp().numpy(), rtol=1e-9)


def test_large_similarities_do_not_overflow():
    s, queries, items = (1e4 * m for m in matrices())
    found = DualIS(1.0, 3.0).fit(queries, items).transform(s)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, 4 * s - queries.amax(0) - 3 * items.amax(0))


def test_without_the_gallery_bank_it_is_the_inverted_softmax():
    s, queries, items = matrices()
    single = inverted_softmax(s, queries, 0.7)
    shift = DualIS(0.7, 1e-12).fit(queries, items).transform(s) - single
    torch.testing.assert_close(shift, torch.full_like(s, -np.log(25)), rtol=0, atol=1e-9)
    constant = DualIS(1e-12, 1e-12).fit(queries, items).transform(s)
    torch.testing.assert_close(constant, torch.full_like(s, -np.log(25 * 20)), rtol=0, atol=1e-9)


def test_a_hub_is_removed_exactly():
    s, queries, items = matrices()
    offset = torch.zeros(12, dtype=torch.float64)
    offset[[2, 7]] = torch.tensor([0.8, -3.0], dtype=torch.float64)
    plain = DualIS().fit(queries, items).transform(s)
    torch.testing.assert_close(DualIS().fit(queries + offset, items + offset).transform(s + offset), plain)


def test_marked_entries_of_a_bank_are_left_out():
    s, queries, items = matrices()
    marked = torch.cat([items, torch.full((1, 12), -torch.inf, dtype=torch.float64)])
    for build in (DualIS, DualDIS):
        expected = build().fit(queries, items).transform(s)
        torch.testing.assert_close(build().fit(queries, marked).transform(s), expected)
    with pytest.raises(ValueError, match="gallery item 3"):
        DualIS().fit(queries, items.index_fill(1, torch.tensor([3]), -torch.inf))


def test_a_fitted_state_loads_into_an_unfitted_part():
    s, queries, items = matrices()
    fitted = DualDIS().fit(queries, items)
    other = DualDIS()
    other.load_state_dict(fitted.state_dict())
    torch.testing.assert_close(other.transform(s), fitted.transform(s))


def test_bad_settings_and_order_of_calls():
    s, queries, items = matrices()
    with pytest.raises(ValueError, match="fitted"):
        DualIS().transform(s)
    with pytest.raises(ValueError, match="beta2"):
        DualIS(beta2=0.0)
    with pytest.raises(ValueError, match="at most the 12"):
        DualDIS(k=13).fit(queries, items)
