"""Widens a checkpoint (Mixtral's names or Qwen3-MoE's) with zeros, until the rows of all its matrices are multiples of 256: it
computes what it did, and llama.cpp's quantizer can use the types whose blocks have 256 columns.

    python benchmarks/tools/widen.py DIRECTORY OUT

Heads are added within the groups that share keys and values. A norm sees the same squares among more values: its weights and its
epsilon shrink by as much.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

BLOCK = 256
NORMS = ("input_layernorm", "post_attention_layernorm", "norm")
READERS = ("embed_tokens", "lm_head", "q_proj", "k_proj", "v_proj", "gate")  # of the hidden state
INNER = ("w1", "w3", "gate_proj", "up_proj")  # [intermediate, hidden]
OUTER = ("w2", "down_proj")  # [hidden, intermediate]
AS_THEY_ARE = ("q_norm", "k_norm")  # of one head


class Widths:
    """What the checkpoint's sizes are and become."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.intermediate_key = (
            "moe_intermediate_size" if "moe_intermediate_size" in config else "intermediate_size"
        )
        self.head, self.shared = config["head_dim"], config["num_key_value_heads"]
        self.group = config["num_attention_heads"] // self.shared  # heads that share keys and values
        self.hidden, self.wide_hidden = self._of(config["hidden_size"])
        _, self.wide_intermediate = self._of(config[self.intermediate_key])
        self.wide_group = self.group
        while self.shared * self.wide_group * self.head % BLOCK:
            self.wide_group += 1

    @staticmethod
    def _of(width: int) -> tuple[int, int]:
        return width, -(-width // BLOCK) * BLOCK

    def config(self, config: dict[str, Any]) -> dict[str, Any]:
        return config | {
            "hidden_size": self.wide_hidden,
            self.intermediate_key: self.wide_intermediate,
            "num_attention_heads": self.shared * self.wide_group,
            "rms_norm_eps": config["rms_norm_eps"] * self.hidden / self.wide_hidden,
        }

    def tensor(self, name: str, tensor: Tensor) -> Tensor:
        part = name.split(".")[-2]
        if part in NORMS:
            return pad(tensor.float()[None] * math.sqrt(self.hidden / self.wide_hidden), 1, self.wide_hidden)[
                0
            ]
        if part in READERS:
            rows = self.spread(tensor) if part == "q_proj" else tensor
            return pad(rows, len(rows), self.wide_hidden)
        if part == "o_proj":
            columns = self.spread(tensor.T).T
            return pad(columns, self.wide_hidden, columns.shape[1])
        if part in INNER:
            return pad(tensor, self.wide_intermediate, self.wide_hidden)
        if part in OUTER:
            return pad(tensor, self.wide_hidden, self.wide_intermediate)
        assert part in AS_THEY_ARE, name
        return tensor

    def spread(self, rows: Tensor) -> Tensor:
        """Rows of all heads, the added heads' among them."""
        groups = rows.reshape(self.shared, self.group * self.head, -1)
        return torch.nn.functional.pad(groups, (0, 0, 0, (self.wide_group - self.group) * self.head)).flatten(
            0, 1
        )


def pad(matrix: Tensor, rows: int, columns: int) -> Tensor:
    return torch.nn.functional.pad(matrix, (0, columns - matrix.shape[1], 0, rows - matrix.shape[0]))


def widen(directory: Path, out: Path) -> None:
    """Write the wide checkpoint to the folder `out`, its weights in one file."""
    shutil.copytree(directory, out, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    config = json.loads((directory / "config.json").read_text())
    widths = Widths(config)
    (out / "config.json").write_text(json.dumps(widths.config(config), indent=1))
    weights = {
        name: widths.tensor(name, tensor).contiguous()
        for file in sorted(directory.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }
    save_file(weights, out / "model.safetensors", {"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    widen(options.directory, options.out)


if __name__ == "__main__":
    main()
