#!/usr/bin/env python3
"""Train dali-tiny from scratch on a CPU: fp32, Muon for the matrices and AdamW for the rest.

One process a core, each with one thread and its own batches; gradients are averaged over gloo. The cosine
schedule goes by the clock (--minutes) or by a number of --steps. Into --work, where tokens.py left the
tokens, it writes model.pt, train.log.jsonl and result.json: held-out losses and the experts' loads by domain.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from model import CONTEXT, EXPERT_WIDTH, DaliTiny
from muon import Muon
from tokenizers import Tokenizer
from tokens import END_OF_TEXT, END_OF_TURN, MIXTURE, Batches

MUON_RATE, ADAM_RATE, ROUTER_RATE = 0.02, 6e-3, 1.5e-3
AUXILIARY_LOSS = 0.01
WARM_UP_STEPS = 60
LONG_FROM = 0.8  # half the context is cheaper; the last fifth of the time sees all of it


def optimizers(model: DaliTiny) -> tuple[Muon, torch.optim.AdamW]:
    matrices, routers, norms = [], [], [model.norm]
    for layer in model.layers:
        matrices += [(each, len(each)) for each in (layer.query, layer.key, layer.value, layer.out)]
        matrices += [(layer.gate_up, EXPERT_WIDTH), (layer.down, layer.down.shape[1])]
        routers.append(layer.router)
        norms += [layer.input_norm, layer.ffn_norm, layer.query_norm, layer.key_norm]
    groups = [
        {"params": [model.embedding], "lr": ADAM_RATE, "weight_decay": 0.01},
        {"params": routers, "lr": ROUTER_RATE, "weight_decay": 0.01},
        {"params": norms, "lr": ADAM_RATE, "weight_decay": 0.0},
    ]
    return Muon(matrices, MUON_RATE), torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-10)


@torch.no_grad()
def held_out(model: DaliTiny, work: Path, sequences: int) -> tuple[dict[str, float], dict[str, list]]:
    """Loss (nats a token) and load [layers][experts] by domain, on sequences spread over held-out text."""
    losses, loads = {}, {}
    for name in MIXTURE:
        with np.load(work / f"{name}.held.npz") as file:
            ids = file["ids"].astype(np.int64)
        n = max(1, min(sequences, (len(ids) - 1) // CONTEXT))
        starts = [int(i * (len(ids) - CONTEXT - 1) / max(1, n - 1)) for i in range(n)]
        rows = torch.from_numpy(np.stack([ids[start : start + CONTEXT + 1] for start in starts]))
        loss, _, load = model.loss(rows[:, :-1], rows[:, 1:])
        losses[name], loads[name] = loss.item(), load.tolist()
    return losses, loads


@torch.no_grad()
def sample(model: DaliTiny, tokenizer: Tokenizer, prompt: str, tokens: int) -> str:
    """A continuation at temperature 0.8, top-p 0.95, always with the same seed."""
    generator = torch.Generator().manual_seed(0)
    ids = tokenizer.encode(prompt).ids
    for _ in range(tokens):
        logits = model(torch.tensor([ids[-CONTEXT:]]))[0, -1]
        probability, candidate = (logits / 0.8).softmax(-1).sort(descending=True)
        probability[probability.cumsum(0) - probability > 0.95] = 0
        drawn = torch.multinomial(probability / probability.sum(), 1, generator=generator)
        token = int(candidate[drawn])
        if token in (END_OF_TEXT, END_OF_TURN):
            break
        ids.append(token)
    return tokenizer.decode(ids, skip_special_tokens=False)


class Report:
    """What the first process prints and writes as it goes."""

    def __init__(self, work: Path) -> None:
        self.work, self.start = work, time.monotonic()
        self.tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
        self.log = (work / "train.log.jsonl").open("w")
        self.mean_loss, self.last = math.nan, 0.0

    def step(
        self, model: DaliTiny, step: int, tokens: int, done: float, loss: float, auxiliary: float
    ) -> None:
        self.mean_loss = loss if step == 1 else 0.98 * self.mean_loss + 0.02 * loss
        seconds = time.monotonic() - self.start
        if step % 50 == 0:
            rate = f"{tokens / seconds:.0f} tokens/s"
            print(f"step {step} {done:.1%} loss {self.mean_loss:.3f} aux {auxiliary:.3f} {rate}", flush=True)
        if done - self.last > 0.1 or done >= 1:
            self.last = done
            losses, loads = held_out(model, self.work, 16 if done >= 1 else 4)
            minutes = seconds / 60
            result = {
                "step": step,
                "tokens": tokens,
                "minutes": minutes,
                "train": self.mean_loss,
                "held": losses,
            }
            self.log.write(json.dumps(result) + "\n")
            self.log.flush()
            print("held-out " + " ".join(f"{name} {value:.3f}" for name, value in losses.items()))
            print(sample(model, self.tokenizer, "Once upon a time", 60), flush=True)
            torch.save(model.state_dict(), self.work / "model.pt")
            (self.work / "result.json").write_text(json.dumps({**result, "load": loads}))


def train(rank: int, options: argparse.Namespace, rendezvous: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    model, batches = DaliTiny(), Batches(options.work, options.seed * 1000 + rank)
    muon, adam = optimizers(model)
    base_rates = [group["lr"] for group in adam.param_groups]
    adam_parameters = [parameter for group in adam.param_groups for parameter in group["params"]]
    parameters = list(model.parameters())
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=options.processes
    )
    report = Report(options.work) if rank == 0 else None
    if report:
        print(f"{sum(map(torch.numel, parameters)) / 1e6:.2f} M parameters, mixture {MIXTURE}", flush=True)
    start, step, tokens, done = time.monotonic(), 0, 0, 0.0
    while done < 1:
        long = done > LONG_FROM
        shape = (options.batch // 2, CONTEXT) if long else (options.batch, CONTEXT // 2)
        ids, targets = batches.draw(*shape)
        loss, auxiliary, _ = model.loss(ids, targets)
        (loss + AUXILIARY_LOSS * auxiliary).backward()

        # one sum over all processes: the gradients, then the first process's clock and the losses
        clock = step / options.steps if options.steps else (time.monotonic() - start) / (options.minutes * 60)
        numbers = torch.tensor([clock if rank == 0 else 0.0, loss.item(), auxiliary.item()])
        flat = torch.cat([*(parameter.grad.flatten() for parameter in parameters), numbers])
        torch.distributed.all_reduce(flat)
        done = float(flat[-3])
        flat /= options.processes
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, gradient in zip(parameters, flat[:-3].split(sizes), strict=True):
            parameter.grad.copy_(gradient.view_as(parameter))

        cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        schedule = min(1.0, (step + 1) / WARM_UP_STEPS) * cosine
        torch.nn.utils.clip_grad_norm_(adam_parameters, 1.0)
        for group, rate in zip(adam.param_groups, base_rates, strict=True):
            group["lr"] = rate * schedule
        adam.step()
        muon.step(schedule)
        model.zero_grad(set_to_none=True)
        step += 1
        tokens += ids.numel() * options.processes
        if report:
            report.step(model, step, tokens, done, *flat[-2:].tolist())
    torch.distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="what tokens.py wrote, and where the result goes"
    )
    parser.add_argument("--minutes", type=float, default=70)
    parser.add_argument("--steps", type=int, help="a fixed number of steps instead of --minutes")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch", type=int, default=12, help="sequences a process and step (12)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(train, (options, f"{folder}/rendezvous"), nprocs=options.processes)


if __name__ == "__main__":
    main()
