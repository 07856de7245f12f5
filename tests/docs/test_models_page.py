"""docs/MODELS.md lists the families that there are; `make sweep` tells whether what it says of each holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import transformers

from families_sweep.tiny import folders, variants

PAGE = (Path(__file__).parents[2] / "docs" / "MODELS.md").read_text(encoding="utf-8")


def test_every_family_is_listed():
    version = re.search(r"with transformers (\S+);", PAGE)
    assert version is not None
    if version[1] != transformers.__version__:
        pytest.skip(f"the page is of transformers {version[1]}")
    listed = re.findall(r"^\| `(\w+)`((?: \([^)]*\))?) \|", PAGE, re.M)
    expected = []
    for folder in folders():
        found = [(v.model_type, f" ({v.name})" if v.name else "") for v in variants(folder)]
        expected += found or [(folder, "")]
    assert listed == expected
