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
