"""Every family that transformers has, tiny and random: right where it runs, refused by name where it does not.

Not part of the default run, as its name says to pytest: `make sweep`.
"""

from __future__ import annotations

import pytest

from families_sweep.outcome import TOLERANCE, Outcome, outcome
from families_sweep.page import PAGE, row
from families_sweep.tiny import Variant, folders, variants

VARIANTS = [variant for folder in folders() for variant in variants(folder)]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_it_is_right_or_refused_and_as_the_page_says(variant: Variant):
    found: Outcome = outcome(variant)
    wrong = {way: difference for way, difference in found.differences if not difference < TOLERANCE}
    assert not wrong
    assert found.loads or found.reason
    assert row(variant, found) in PAGE.read_text(encoding="utf-8").splitlines()
