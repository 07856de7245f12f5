"""LoadOptions: every option once, refused at construction, without torch."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import dali
from dali import options
from dali.errors import UsageError
from dali.kernels.formats import FORMATS
from dali.kernels.packing import QUANTIZERS
from dali.options import LoadOptions


def test_the_names_written_out_are_the_formats():
    packed = [name for name, format in FORMATS.items() if not format.quantized or name in QUANTIZERS]
    assert ("auto", "keep", *packed) == options.QUANTS


def test_a_mistake_is_told_without_torch():
    code = """
import sys
import dali
try:
    dali.LoadOptions(quant="q8")
except dali.UsageError as error:
    assert "q8" in error.problem
else:
    sys.exit("not refused")
dali.LoadOptions(device="sim:paper", policy="hybrimoe")
assert not {"torch", "transformers"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"quant": "q8"}, "Unknown quantization 'q8'"),
        ({"quant": None}, "quant cannot be None"),
        ({"dtype": "int8"}, "Unknown dtype 'int8'"),
        ({"cache_type": "q4_0"}, "Unknown type of keys and values 'q4_0'"),
        ({"cache_type": None}, "cache_type cannot be None"),
        ({"cache_type": "q8", "device": "cuda"}, "cache_type q8 is not for cuda: dali's GPU kernels"),
        ({"cache_type": "q8_0", "dtype": "float16"}, "cache_type q8_0 is not for dtype float16"),
        ({"device": "tpu"}, "Unknown device 'tpu'"),
        ({"device": "cuda:x"}, "Unknown device 'cuda:x'"),
        ({"device": "sim:"}, "Unknown device 'sim:'"),
        ({"device": "sim:nowhere"}, "There is no hardware profile 'nowhere'"),
        ({"threads": 0}, "out of range"),
        ({"threads": 10**6}, "out of range"),
        ({"threads": True}, "threads cannot be True"),
        ({"ctx_size": 4096.5}, "ctx_size cannot be 4096.5"),
        ({"ram": -1}, "ram cannot be -1"),
        ({"ram": "lots"}, "'lots' is not a size"),
        ({"vram": "8GiB"}, "is about an accelerator"),
        ({"prefetch": "none"}, "is about an accelerator"),
        ({"prefetch": "ridge", "ram": "8GiB"}, "prefetch ridge is not for experts on disk"),
        ({"prefetch": "none", "ram": "8GiB", "cache": "lru"}, "cache is about an accelerator"),
        ({"device": "sim:paper", "assign": "best"}, "There is no assign policy 'best'"),
        ({"device": "sim:paper", "policy": "hybrimoe", "cache": "lru"}, "is a whole system"),
        ({"device": "sim:paper", "n_cpu_moe": 1, "cache": "lru"}, "leaves whole layers where they are"),
        ({"device": "sim:paper", "n_cpu_moe": 1, "assign": "cpu"}, "exclude each other"),
        ({"device": "sim:paper", "lossy": True}, "none is named"),
        ({"device": "sim:paper", "profile": "laptop-8gb"}, "is not the one of sim:paper"),
        ({"offline": "yes"}, "offline cannot be 'yes'"),
        ({"cache_ram": "much"}, "'much' is not a size"),
        ({"cache_ram": -1}, "cache_ram cannot be -1"),
        ({"cache_dir": ""}, "cache_dir cannot be ''"),
        ({"cache_dir": 5}, "cache_dir cannot be 5"),
        ({"cache_disk": "1GiB"}, "is about a folder, and none is named"),
        (
            {"cache_dir": "d", "device": "sim:paper", "policy": "daop", "lossy": True},
            "changes what is kept of a prompt",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(given, problem):
    with pytest.raises(UsageError) as error:
        LoadOptions(**given)
    assert problem in str(error.value)


def test_sizes_come_as_people_write_them():
    chosen = LoadOptions(device="sim:paper", ram="2GiB", vram=5)
    assert (chosen.ram_bytes, chosen.vram_bytes) == (2**31, 5)
    assert LoadOptions().ram_bytes is None
    assert LoadOptions(ram="2GiB", prefetch="next_gate").prefetch == "next_gate"
    kept = LoadOptions(cache_ram="1MiB", cache_dir="d", cache_disk="2MiB")
    assert (kept.cache_ram_bytes, kept.cache_disk_bytes) == (2**20, 2**21)


def test_an_unknown_option_is_named(dali_tiny):
    with pytest.raises(UsageError, match="quantize"):
        dali.load(dali_tiny, quantize="w4")


def test_the_signature_of_load_names_every_option():
    assert set(inspect.signature(dali.load).parameters) >= set(LoadOptions.__dataclass_fields__)
