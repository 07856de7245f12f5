"""A tiny model whose next token is a fixed function of the last one, so that any answer can be written down beforehand."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3MoeConfig

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
HARMONY = (
    "{% for m in messages %}<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
HARMONY_TOKENS = (
    "<|endoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|call|>",
)  # fmt: skip


def scripted_tokenizer(
    words: tuple[str, ...] = (),
    special: tuple[str, ...] = CHATML_TOKENS,
    template: str | None = CHATML,
    added: tuple[str, ...] = (),
    eos: str = "<|endoftext|>",
) -> Any:
    """Single bytes, `words` as tokens that no text is encoded to, `special` ones, and `added` ones, which are not special."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelt = ["".join(piece for piece, _ in split.pre_tokenize_str(word)) for word in words]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary: dict[str, int] = {}
    for token in (*special, *letters, "qz", *spelt):  # a merge, as GGUF files have some
        vocabulary.setdefault(token, len(vocabulary))
    backend = Tokenizer(models.BPE(vocabulary, [("q", "z")]))
    backend.pre_tokenizer, backend.decoder = split, decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, normalized=False) for token in added])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, eos_token=eos
    )
    tokenizer.chat_template = template
    return tokenizer


def scripted_model(tokenizer: Any, script: list[str], after: str = "\n") -> Any:
    """Says the tokens of `script`, none of them twice, after a prompt that ends with `after`."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    known = tokenizer.get_vocab()

    def token(word: str) -> int:
        return (
            known[word]
            if word in known
            else known["".join(piece for piece, _ in split.pre_tokenize_str(word))]
        )

    size = len(tokenizer)
    hidden = -(-size // 32) * 32
    config = Qwen3MoeConfig(
        vocab_size=size, hidden_size=hidden, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=32, intermediate_size=32, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2,
        max_position_embeddings=4096, tie_word_embeddings=False, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with (
        torch.no_grad()
    ):  # attention and experts add nothing; the output matrix leads from each token to its successor
        for name, parameter in model.named_parameters():
            if name.endswith("o_proj.weight") or "down_proj" in name:
                parameter.zero_()
            if "norm" in name:
                parameter.fill_(1)
        model.model.embed_tokens.weight.copy_(torch.eye(size, hidden))
        successor = torch.zeros(size, hidden)
        chain = [token(after), *map(token, script)]
        assert len(set(chain)) == len(chain), "a token occurs twice"
        for last, following in pairwise(chain):
            successor[following, last] = 1
        model.lm_head.weight.copy_(successor)
    return model


def save_scripted(directory: Path, script: list[str], after: str = "\n", **tokenizer: Any) -> Path:
    """The model and a tokenizer for it, as a directory that dali loads."""
    special = tokenizer.get("special", CHATML_TOKENS)
    added = tokenizer.get("added", ())
    words = tuple(word for word in script if word not in (*special, *added))
    known = scripted_tokenizer(words, **tokenizer)
    scripted_model(known, script, after).save_pretrained(directory)
    known.save_pretrained(directory)
    return directory
