"""The tokenizer and chat template of a GGUF file.

Vocabulary, merges and scores stand in the file. How a byte-level tokenizer splits text before merging
is only named there (`tokenizer.ggml.pre`); a name nobody knows is an error here, as another model's splitting
gives other tokens without a sign.
"""

from __future__ import annotations

from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges

from dali.errors import DaliError, reason
from dali.loading.gguf.checks import TOKENS
from dali.loading.gguf.families import family_of
from dali.loading.gguf.splits import SPLITS
from dali.loading.panic import panics_as_errors
from dali.store.gguf.header import Gguf, damaged

BEGUN = {  # a text begins with a token of its own where the file does not say
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "tekken",
}  # fmt: skip
WHOLE_WORDS = BEGUN | {"glm4", "glm5"}  # a word that is a token is not put together by merges
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # ggml's token types: those that text is searched for first
# Phi's tokens take the white space after them, but these.
NOT_STRIPPED = {"<unk>", "<s>", "<|endoftext|>"}
NO_BYTES = {chr(byte) for byte in (0xC0, 0xC1, *range(0xF5, 0x100))}  # would spell bytes that UTF-8 never has
KINDS = ("gpt2", "llama", "gemma4")
SPACE = "\u2581"  # how sentencepiece writes one


def end_ids(gguf: Gguf) -> list[int]:
    """The tokens that the file itself says end an answer."""
    named = (special_id(gguf, name) for name in ("eos", "eot", "eom"))
    return list(dict.fromkeys(token for token in named if token is not None))


def read_tokenizer(gguf: Gguf) -> Any:
    """The tokenizer of a file, its chat template in it. DaliError for a kind nobody knows, or a damaged one."""
    kind = gguf.require("tokenizer.ggml.model", str)
    split = gguf.get("tokenizer.ggml.pre", str, "default") if kind == "gpt2" else ""
    if kind not in KINDS:
        raise DaliError(
            f"{gguf.path} has a {kind!r:.60} tokenizer, which dali cannot read.",
            f"Known ones: {', '.join(KINDS)}.",
        )
    if kind == "gpt2" and split not in SPLITS:
        raise DaliError(
            f"{gguf.path} splits text as {split!r:.60}, which dali does not know.",
            f"Known splits: {', '.join(sorted(SPLITS))}. Use a newer file, or safetensors weights.",
        )
    tokens = gguf.strings(TOKENS)
    if not tokens:
        raise damaged(gguf.path, f"its key {TOKENS} is empty")
    gguf.require("tokenizer.ggml.scores" if kind == "llama" else "tokenizer.ggml.merges", list)
    try:
        with panics_as_errors():
            backend = _backend(gguf, kind, split, tokens)
    except Exception as error:  # whatever transformers and tokenizers stumble over
        raise damaged(gguf.path, f"its tokenizer is damaged ({reason(error)})") from error
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {name: special_id(gguf, key) for name, key in names.items()}
    special = {f"{name}_token": tokens[i] for name, i in ids.items() if i is not None}
    # llama.cpp's defaults for files that do not say.
    begin = gguf.optional("tokenizer.ggml.add_bos_token", bool, kind != "gpt2" or split in BEGUN)
    end = gguf.optional("tokenizer.ggml.add_eos_token", bool, False)
    around = [special.get("bos_token") if begin else None, "$A", special.get("eos_token") if end else None]
    backend.post_processor = processors.TemplateProcessing(
        single=[piece for piece in around if piece],
        special_tokens=[(special[f"{name}_token"], i) for name, i in ids.items() if i is not None],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **special
    )
    tokenizer.chat_template = gguf.optional("tokenizer.chat_template", str)
    return tokenizer


def _backend(gguf: Gguf, kind: str, split: str, tokens: list[str]) -> Tokenizer:
    typed = list(zip(tokens, gguf.optional("tokenizer.ggml.token_type", list) or [], strict=False))
    special = [token for token, type in typed if type in (UNKNOWN, CONTROL)]
    words = [token for token, type in typed if type == USER_DEFINED]
    if kind == "gpt2":
        backend = _byte_level(gguf, split, tokens, words)
    else:
        backend = _merged_pieces(gguf, tokens) if kind == "gemma4" else _sentencepiece(gguf, tokens)
    strips = family_of(gguf).strips_after_tokens
    for add, found in ((backend.add_special_tokens, special), (backend.add_tokens, words)):
        add([AddedToken(t, normalized=False, rstrip=strips and t not in NOT_STRIPPED) for t in found])
    return backend


def _merges(gguf: Gguf, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    merges = [
        (left, right) for left, _, right in (m.partition(" ") for m in gguf.strings("tokenizer.ggml.merges"))
    ]
    for merge in merges:  # one that is too long brings tokenizers down
        if "".join(merge) not in vocabulary:
            raise ValueError(f"the merge {' '.join(merge)!r:.60} makes no token")
    return merges


def _pieces(
    gguf: Gguf, tokens: list[str], vocabulary: dict[str, int], merges: list[tuple[str, str]]
) -> Tokenizer:
    """Merges letters; what is no token is spelt in bytes, or is unknown."""
    unknown = special_id(gguf, "unknown")
    return Tokenizer(
        models.BPE(
            vocabulary,
            merges,
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )


def _merged_pieces(gguf: Gguf, tokens: list[str]) -> Tokenizer:
    """Gemma 4's: merges in order, of letters and not of their bytes; no text is split before, none begins with a space more."""
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = _pieces(gguf, tokens, vocabulary, _merges(gguf, vocabulary))
    backend.normalizer = normalizers.Replace(" ", SPACE)
    pieces = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(pieces)
    return backend


def _byte_level(gguf: Gguf, split: str, tokens: list[str], words: list[str]) -> Tokenizer:
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = _merges(gguf, vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=split in WHOLE_WORDS))
    splits = [pre_tokenizers.Split(Regex(one), "isolated") for one in SPLITS[split]]
    bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes])
    # DeepSeek has some letters (ö, ü) as words of their own, which else would be read as bytes.
    letters = [(word, bytes.pre_tokenize_str(word)[0][0]) for word in words if word in NO_BYTES]
    spell = [decoders.Replace(letter, spelled) for letter, spelled in letters]
    backend.decoder = decoders.Sequence([*spell, decoders.ByteLevel()])
    return backend


def _sentencepiece(gguf: Gguf, tokens: list[str]) -> Tokenizer:
    """Two pieces are merged where the result is a token, best score first. A text, and what follows a control token, begins with
    one space more."""
    vocabulary = {token: i for i, token in enumerate(tokens)}
    scores = dict(zip(tokens, gguf.require("tokenizer.ggml.scores", list), strict=False))
    backend = _pieces(gguf, tokens, vocabulary, generate_merges(vocabulary, scores))
    prefixed = gguf.optional("tokenizer.ggml.add_space_prefix", bool, True)
    prefix = [normalizers.Prepend(SPACE)] if prefixed else []
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    pieces = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*pieces, *strip])
    return backend


def special_id(gguf: Gguf, name: str) -> int | None:
    """The id of the token that is for instance the "padding"; None where a file names none, or one that is no token."""
    key = f"tokenizer.ggml.{name}_token_id"
    found: int | None = gguf.optional(key, int)
    count = len(gguf.require(TOKENS, list))
    if found is not None and not 0 <= found < count:
        gguf.ignored[key] = f"is {found}, of {count} tokens"
        return None
    return found
