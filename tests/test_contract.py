"""Every registered part is held to the contract of docs/architecture.md."""

from __future__ import annotations

import pytest

from contract.checks import check_one_card_per_paper, checks_for
from logitkit import catalog

CASES = [
    pytest.param(check, card, id=f"{card.room}-{card.name}-{check.__name__.removeprefix('check_')}")
    for card in catalog.cards()
    for check in checks_for(card)
]


@pytest.mark.parametrize(("check", "card"), CASES)
def test_contract(check, card):
    check(card)


def test_one_card_per_paper():
    check_one_card_per_paper(catalog.cards())
