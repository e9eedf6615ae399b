"""A step of DP-SGD against a plain step of the same network: CPU time, and memory.

    python benchmarks/dp_step.py [--quick] [--output FILE.json]

Time: both steps in one process by turns, so that a busy machine slows both; CPU seconds of this
thread, the median of the steps. The DP step is the product's: per-unit gradients of backbone and
head, clipping, noise, optimiser. Memory: each in a process of its own, the largest resident set
above that before the first step. The target is at most 2.5 times plain training (small_conv).
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from measuring import (
    answer,
    describe_machine,
    figure,
    forget_peak,
    own_bytes,
    own_peak_bytes,
    run_case,
    write_json,
)
from rich.console import Console
from torch import nn
from torch.nn import functional

from fedface.backbones import MobileFaceNet, SmallConv
from fedface.heads import CosFace
from fedface.privacy.dp_sgd import ClippedSum
from fedface.privacy.private_training import noisy_mean
from fedface.random import stream
from fedface.report.tables import Table
from fedface.training.optimizers import SGD

N_PEOPLE = 16
CASES: list[dict[str, Any]] = [
    {"backbone": "small_conv", "size": 32, "images": 32},
    {"backbone": "small_conv", "size": 64, "images": 32},
    {"backbone": "mobilefacenet", "size": 64, "images": 16},
]
KINDS = ("plain", "image", "subject")


def step_of(case: dict[str, Any], kind: str) -> Callable[[], None]:
    """Returns a training step; the subject's units have four images each."""
    config = {"small_conv": SmallConv(), "mobilefacenet": MobileFaceNet(embedding_size=128)}
    backbone: nn.Module = config[case["backbone"]].build(case["size"], stream(0, "b"))
    head = CosFace(scale=16, margin=0.2).build(128, N_PEOPLE, stream(0, "h"))
    n, rng = case["images"], stream(0, "data")
    images = torch.randn(n, 3, case["size"], case["size"], generator=rng)
    labels = torch.randint(0, N_PEOPLE, (n,), generator=rng)
    optimizer = SGD().build((backbone, head), 1, 1)
    channels_last = images.contiguous(memory_format=torch.channels_last)

    def plain() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(head(backbone(channels_last), labels), labels)
        torch.autograd.backward(loss)
        optimizer.step()

    if kind == "plain":
        return plain
    owners = None if kind == "image" else torch.arange(n) // 4
    summed = ClippedSum(backbone, head, 1.0)
    summed.__enter__()

    def private() -> None:
        summed.reset()
        summed.add(images, labels, owners)
        for parameter, total in zip(summed.parameters, summed.sums, strict=True):
            parameter.grad = noisy_mean(total, 1.0, 1.0, n, rng)
        optimizer.step()

    return private


def times(case: dict[str, Any], n_steps: int) -> dict[str, float]:
    """Returns the median CPU milliseconds of each kind's step, measured by turns."""
    steps = {kind: step_of(case, kind) for kind in KINDS}
    taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(n_steps + 2):
        for kind, step in steps.items():
            start = process_time()
            step()
            if number > 1:
                taken[kind].append(1e3 * (process_time() - start))
    return {kind: median(values) for kind, values in taken.items()}


def memory(case: dict[str, Any], kind: str) -> dict[str, float]:
    """Returns the megabytes that a few steps take on top of what was there before."""
    step = step_of(case, kind)
    before = own_bytes()
    forget_peak()
    for _ in range(3):
        step()
    return {"megabytes": (own_peak_bytes() - before) / 1e6}


def main(argv: list[str] | None = None) -> None:
    """Measures every case, prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two steps of the smallest case")
    parser.add_argument("--output", type=Path, default=Path("runs/dp_step.json"))
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.case is not None:
        case = options.case
        answer(
            times(case, case["n_steps"]) if case["kind"] == "time" else memory(case, case["kind"])
        )
        return
    machine, script = describe_machine(), Path(__file__)
    records: list[dict[str, Any]] = []
    rows: list[tuple[str, ...]] = []
    for case in CASES[:1] if options.quick else CASES:
        n_steps = 2 if options.quick else 20
        taken = run_case(script, {**case, "kind": "time", "n_steps": n_steps}, timeout=3600)
        held = {kind: run_case(script, {**case, "kind": kind}, timeout=3600) for kind in KINDS}
        records.append({"times": taken, "memory": held})
        for kind in KINDS:
            ratio = taken[kind] / taken["plain"] if "plain" in taken else None
            name = f"{case['backbone']} {case['size']} px, {case['images']} images"
            mb = held[kind].get("megabytes")
            rows.append((name, kind, figure(taken.get(kind)), figure(ratio), figure(mb)))
    write_json(options.output, "dp_step", machine, {"quick": options.quick}, {"cases": records})
    columns = ("network", "step", "CPU ms", "times plain", "peak MB")
    console = Console()
    console.print(Table(columns, tuple(rows)).markdown(), markup=False, highlight=False)
    console.print(f"written: {options.output}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
