"""Hardware profiles and the cost model built on them."""
