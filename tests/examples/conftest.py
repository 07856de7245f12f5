"""The examples are programs in folders of their own, beside which they find their parts."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "examples" / "ray_serve"))
