"""A budget of RAM is held by the kernel's count of the whole process, the page cache included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from dali.kernels import native
from families import random_model, save_model

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "tools"))
from memory_group import MemoryGroup

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not native.AVAILABLE, reason="the kernels and what Linux counts are needed"
)
# Refused with the least budget, which is taken; packs, reads a prompt and answers, two at once.
ANSWERS = """
import json, re, sys
import dali
from dali.errors import DaliError
from dali.units import parse_size
try:
    dali.load(sys.argv[1], ram="10MiB", quant="w8")
except DaliError as error:
    ram = re.search(r"Give ram (\\w+) or more", error.fix)[1]
llm = dali.load(sys.argv[1], ram=ram, quant="w8")
llm.generate([[5 + i % 90 for i in range(length)] for length in (400, 40)], max_tokens=4, ignore_eos=True)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"ram": parse_size(ram), "experts": llm.loaded.pool.slots, "process": 1024 * int(peak.split()[1])}))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What a process with the least budget says of itself; "group", what the kernel counted of it with the page cache, or why it
    cannot here."""
    folder = tmp_path_factory.mktemp("budget")
    sizes = {"moe_intermediate_size": 256, "num_experts": 32, "num_hidden_layers": 4, "hidden_size": 512}
    model = random_model("qwen3_moe", dtype=torch.bfloat16, max_position_embeddings=2048, **sizes)
    command = [sys.executable, "-c", ANSWERS, str(save_model(model, folder / "model"))]
    with ExitStack() as stack:
        try:
            group = stack.enter_context(MemoryGroup())
            join = group.join()
        except OSError as error:
            group, join, counted = None, None, str(error)
        environment = os.environ | {"DALI_CACHE_DIR": str(folder / "cache")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, preexec_fn=join)
        if group is not None:
            counted = group.peak
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"group": counted}


def test_a_process_takes_no_more_than_its_budget(told):
    assert told["experts"] < 4 * 32  # so that the budget is what they have to keep to
    assert told["process"] <= told["ram"]


def test_nor_does_it_with_its_share_of_the_page_cache(told):
    if isinstance(told["group"], str):
        pytest.skip(told["group"])
    assert told["group"] <= told["ram"]
