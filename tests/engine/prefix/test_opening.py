"""The prefix cache as options ask for it, and the identity under which a model's entries outlive it."""

from __future__ import annotations

from dataclasses import replace

import pytest

import dali
from dali import compiled
from dali.engine.prefix import opening
from dali.engine.prefix.opening import default_ram, identity
from dali.errors import UsageError
from dali.kernels import native
from dali.loading.room import HEADROOM
from dali.options import LoadOptions

MESSAGES = [{"role": "user", "content": "Tell me a story about a little dog, and another about a cat."}]


def test_a_conversation_goes_on_after_a_restart(dali_tiny, tmp_path):
    options = {"cache_dir": tmp_path / "new", "cache_disk": "1GiB", "cache_ram": "64MiB"}
    with dali.load(dali_tiny, **options) as llm:
        assert llm.engine.prefixes.tree.budget == 64 << 20
        first = llm.chat(MESSAGES, temperature=0, max_tokens=20)
    said = [*MESSAGES, {"role": "assistant", "content": first.text}, {"role": "user", "content": "Go on."}]
    with dali.load(dali_tiny, **options) as llm:
        again = llm.chat(said, temperature=0, max_tokens=20)
    with dali.load(dali_tiny, cache_ram=0) as llm:
        expected = llm.chat(said, temperature=0, max_tokens=20)
    assert (first.cached_tokens, expected.cached_tokens) == (0, 0)
    assert again.cached_tokens >= first.prompt_tokens
    assert again.tokens == expected.tokens


def test_whatever_may_change_a_bit_changes_the_identity(dali_tiny, tmp_path, monkeypatch):
    def told(**options: object) -> str:
        with dali.load(dali_tiny, **options) as llm:
            return identity(llm.loaded, LoadOptions(**options))  # type: ignore[arg-type]

    found = [told(quant="w4"), told(dtype="float32"), told(rope_scaling="linear", rope_scale=2)]
    if native.enabled():
        found.append(told(cache_type="q8"))
        assert told(cache_type="q8_0") == found[-1]
    with dali.load(dali_tiny) as llm:
        loaded, options = llm.loaded, LoadOptions()
        plain = identity(loaded, options)
        assert identity(loaded, LoadOptions(threads=1, ctx_size=100, ram="9GiB")) == plain
        found.append(identity(replace(loaded, fingerprint="other files"), options))
        for name, value in (("ARITHMETIC", -1), ("_kernels", lambda: "other"), ("BLOCK_TOKENS", 32)):
            with monkeypatch.context() as patch:
                patch.setattr(opening, name, value)
                found.append(identity(loaded, options))
    assert len({plain, *found}) == 1 + len(found)


@pytest.mark.skipif(not native.enabled(), reason="there are no compiled kernels")
def test_another_build_and_other_instructions_are_other_kernels(tmp_path, monkeypatch):
    found = {opening._kernels()}
    for variant in (*compiled.variants()[1:], "torch"):
        monkeypatch.setenv(native.VARIABLE, variant)
        found.add(opening._kernels())
    monkeypatch.undo()
    (tmp_path / "library.so").write_bytes(b"another build")
    monkeypatch.setattr(compiled.library, "__file__", str(tmp_path / "library.so"))
    assert native.enabled()
    found.add(opening._kernels())
    assert len(found) == len(compiled.variants()) + 2


def test_a_quarter_of_what_is_free_is_taken_and_never_much(dali_tiny, monkeypatch):
    with dali.load(dali_tiny) as llm:
        model = llm.loaded.expert_bytes + llm.loaded.dense_bytes
        for free, planned, expected in (
            (8 << 30, None, 2 << 30),
            (2**40, None, 8 << 30),
            (2**40, model + HEADROOM + 400, 100),
            (2**40, model, 0),
            (400, 2**40, 100),
        ):
            monkeypatch.setattr(opening, "available_ram", lambda free=free: free)
            assert default_ram(llm.loaded, planned) == expected


def test_a_folder_that_is_a_file_is_refused_before_the_model_is_read(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is not a folder"):
        dali.load("/no/such/model", cache_dir=tmp_path / "file")
