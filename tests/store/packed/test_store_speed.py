"""How a store's reads are measured when it is opened."""

from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape
from dali.kernels.formats import FORMATS
from dali.store.packed import speed
from dali.store.packed.header import StoreHeader

SHAPE = ExpertShape(256, 256, Activation("silu"))


def test_records_at_the_end_may_be_smaller_than_others(tmp_path, monkeypatch):
    """As in files that give their first layers more bits. Of 8 records the trials read 30 at random, the last among them."""
    large, small = (ExpertLayout(SHAPE, FORMATS[name]) for name in ("w8", "w4"))
    header, path = StoreHeader.of("tiny", "f1", [large, small], 4), tmp_path / "gguf.safetensors"
    path.write_bytes(header.encode().ljust(header.file_bytes, b"\0"))
    monkeypatch.setattr(speed, "LEAST", 0)
    monkeypatch.setattr(speed, "SECONDS", 0.0)
    found = speed.measure_speed(path, header)
    assert found.depth in speed.DEPTHS
    assert found.bandwidth > 0
