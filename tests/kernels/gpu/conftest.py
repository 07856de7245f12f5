"""Where the GPU's kernels are kept once they are compiled for the CPU."""

import pytest
import shimmed

from dali.kernels import native


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    if shimmed.COMPILER is None:
        pytest.skip("there is no g++")
    if not native.enabled() or native.variant() == "portable":
        pytest.skip("the CPU's kernels do not fuse multiply-adds")
    return tmp_path_factory.mktemp("shimmed")
