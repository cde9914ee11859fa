"""The dynamic form against the static one, and row by row."""

import torch

from logitkit.calibrate import DualDIS, DualIS, inverted_softmax


def matrices(seed=0, gallery=12):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, gallery, generator=g, dtype=torch.float64) for n in (15, 20, 25)]


def test_dynamic_with_all_items_active_is_the_static_and_with_none_the_raw_order():
    s, queries, items = matrices()
    torch.testing.assert_close(
        DualDIS(0.7, 2.5, k=12).fit(queries, items).transform(s),
        DualIS(0.7, 2.5).fit(queries, items).transform(s),
    )
    hub = torch.zeros(12, dtype=torch.float64)
    hub[11] = 100.0  # every bank row retrieves the last item, which no query does
    s[:, 11] = -100.0
    found = DualDIS(0.7, 2.5).fit(queries + hub, items + hub).transform(s)
    assert torch.equal(found.argsort(dim=1), s.argsort(dim=1))


def test_dynamic_treats_each_row_and_bank_by_its_first_item():
    s, queries, items = matrices()
    queries[:, 4] += 100  # the query bank retrieves item 4 alone, the gallery bank item 5
    items[:, 5] += 100
    s[0, 4], s[1, 5], s[2, 6] = 50.0, 50.0, 50.0
    found = DualDIS(0.7, 2.5).fit(queries, items).transform(s)
    torch.testing.assert_close(found[0], (inverted_softmax(s, queries, 0.7) + 2.5 * s)[0])
    torch.testing.assert_close(found[1], (inverted_softmax(s, items, 2.5) + 0.7 * s)[1])
    torch.testing.assert_close(found[2], 3.2 * s[2])
