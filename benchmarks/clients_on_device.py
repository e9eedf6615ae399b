"""Several clients on one device: one after the other, on streams, as one batch, or in processes?

    python benchmarks/clients_on_device.py [--quick] [--clients 4 16] [--sizes 32 64]
        [--device cuda] [--processes 2 4] [--output FILE.json]

Each client trains the same backbone (``small_conv`` with group norm) and a CosFace head of its own
on its own images, mini-batches of 32, SGD with momentum, the product's precision on the device.

    sequential   one process, one client after the other: the plain loop
    streams      one process, a CUDA stream per client, their steps in turns (left out on a CPU)
    batched      one process, the clients' weights stacked and torch.func.vmap over them
    processes N  N processes that share the device, clients dealt to them: what engine ``resident``
                 does with ``client_resources: {num_gpus: 1/N}``

All start from the same weights and see the same images; in float32 the first three end with the
same weights but for rounding, which is checked. Images per second after a warm-up; start-up of the
processes is not counted. Memory is the device's peak (CUDA), in the first process.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.multiprocessing as mp
from measuring import describe_machine, figure, write_json
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from fedface.backbones import SmallConv
from fedface.heads import CosFace
from fedface.parameters import Layout, trainable
from fedface.random import stream
from fedface.report.tables import MISSING, Table
from fedface.training.local import precision

BATCH, N_IDENTITIES, RATE, MOMENTUM = 32, 50, 0.05, 0.9

TIMEOUT = 120.0
"""Seconds that processes may take to start, and to train."""

APART = 0.02
"""The most that rounding may part two ways of training, as a share of the way that they went."""

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        n_clients: Clients in all.
        size: The side of the images.
        n_steps: Optimiser steps of each client.
        device: Where.
        seed: Fixes weights and images.
    """

    n_clients: int
    size: int
    n_steps: int
    device: str
    seed: int

    def model(self) -> "Recogniser":
        """Returns backbone and head with the weights that every client starts from."""
        backbone = SmallConv().build(self.size, stream(self.seed, "backbone"))
        head = CosFace(scale=16.0, margin=0.2).build(128, N_IDENTITIES, stream(self.seed, "head"))
        return Recogniser(backbone, head).to(self.device)

    def data(self, client: int) -> tuple[Tensor, Tensor]:
        """Returns a client's ``(n_steps, BATCH, 3, size, size)`` images and their labels."""
        rng = stream(self.seed, "images", client)
        images = torch.rand(self.n_steps, BATCH, 3, self.size, self.size, generator=rng) * 2 - 1
        labels = torch.randint(N_IDENTITIES, (self.n_steps, BATCH), generator=rng)
        return images.to(self.device), labels.to(self.device)


class Recogniser(nn.Module):
    """A backbone and its head."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        """Puts them together."""
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean loss of a mini-batch."""
        with precision(images.device):
            logits = self.head(self.backbone(images), labels).float()
        return functional.cross_entropy(logits, labels)


def steps_of(model: Recogniser) -> Callable[[Tensor, Tensor], None]:
    """Returns one optimiser step of a model."""
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM)

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        model(images, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def sequential(case: Case, clients: Sequence[int]) -> Callable[[], list[Weights]]:
    """Returns the training of these clients one after the other."""
    data = {client: case.data(client) for client in clients}

    def work() -> list[Weights]:
        found = []
        for client in clients:
            model = case.model()
            step = steps_of(model)
            for images, labels in zip(*data[client], strict=True):
                step(images, labels)
            found.append({name: value.detach() for name, value in trainable(model).items()})
        return found

    return work


def streams(case: Case, clients: Sequence[int]) -> Callable[[], list[Weights]]:
    """Returns the training of these clients in turns, each on a CUDA stream of its own."""
    data = [case.data(client) for client in clients]

    def work() -> list[Weights]:
        models = [case.model() for _ in clients]
        steps = [steps_of(model) for model in models]
        lanes = [torch.cuda.Stream() for _ in clients]
        torch.cuda.synchronize()
        for k in range(case.n_steps):
            for step, lane, (images, labels) in zip(steps, lanes, data, strict=True):
                with torch.cuda.stream(lane):
                    step(images[k], labels[k])
        torch.cuda.synchronize()
        return [{n: v.detach() for n, v in trainable(model).items()} for model in models]

    return work


def batched(case: Case, clients: Sequence[int]) -> Callable[[], list[Weights]]:
    """Returns the training of these clients at once: every weight has a dimension of clients."""
    data = [case.data(client) for client in clients]
    images = torch.stack([each[0] for each in data], dim=1)
    labels = torch.stack([each[1] for each in data], dim=1)

    def loss(weights: Weights, images: Tensor, labels: Tensor) -> Tensor:
        found: Tensor = functional_call(model, weights, (images, labels))
        return found

    model = case.model()
    gradients = vmap(grad(loss))

    def work() -> list[Weights]:
        weights = {
            name: value.detach().expand(len(clients), *value.shape).clone()
            for name, value in trainable(model).items()
        }
        moving = {name: torch.zeros_like(value) for name, value in weights.items()}
        for k in range(case.n_steps):
            found = gradients(weights, images[k], labels[k])
            for name, value in weights.items():
                value.sub_(moving[name].mul_(MOMENTUM).add_(found[name]), alpha=RATE)
        return [{n: v[i] for n, v in weights.items()} for i in range(len(clients))]

    return work


MODES = {"sequential": sequential, "streams": streams, "batched": batched}


def measured(case: Case, mode: str) -> dict[str, Any]:
    """Returns images per second and the device's peak memory of a mode in this process."""
    work = MODES[mode](case, range(case.n_clients))
    work()
    on_gpu = case.device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds, found = _timed(case, work)
    rows = [Layout.of(case.model()).flatten(weights) for weights in found]
    return {
        "images_per_second": case.n_clients * case.n_steps * BATCH / seconds,
        "device_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "weights": torch.stack(rows).cpu(),
    }


def in_processes(case: Case, n_processes: int) -> dict[str, Any]:
    """Returns images per second of processes that share the device."""
    context = mp.get_context("spawn")
    ready, done = context.Barrier(n_processes + 1), context.Barrier(n_processes + 1)
    shares = [range(k, case.n_clients, n_processes) for k in range(n_processes)]
    workers = [
        context.Process(target=_share, args=(case, share, ready, done), daemon=True)
        for share in shares
    ]
    for worker in workers:
        worker.start()
    ready.wait(TIMEOUT)
    start = perf_counter()
    done.wait(TIMEOUT)
    seconds = perf_counter() - start
    for worker in workers:
        worker.join()
    return {
        "images_per_second": case.n_clients * case.n_steps * BATCH / seconds,
        "device_bytes": None,
    }


def _share(case: Case, clients: Sequence[int], ready: Any, done: Any) -> None:
    """One process's clients."""
    torch.set_num_threads(1)
    work = sequential(case, clients)
    work()
    ready.wait()
    _timed(case, work)
    done.wait()


def _timed(case: Case, work: Callable[[], list[Weights]]) -> tuple[float, list[Weights]]:
    start = perf_counter()
    found = work()
    if case.device == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - start, found


def run(options: argparse.Namespace) -> tuple[list[dict[str, Any]], Table]:
    """Measures every mode.

    Raises:
        RuntimeError: If a mode on the CPU ends with other weights than the plain loop.
    """
    results: list[dict[str, Any]] = []
    rows = []
    for size in options.sizes:
        for n_clients in options.clients:
            case = Case(n_clients, size, options.steps, options.device, options.seed)
            model = case.model()
            found = {
                mode: measured(case, mode)
                for mode in MODES
                if mode != "streams" or options.device == "cuda"
            }
            plain = found["sequential"]
            expected = plain["weights"]
            moved = float((expected - Layout.of(model).flatten(trainable(model)).cpu()).norm())
            for mode, each in found.items():
                apart = each["apart"] = float((each.pop("weights") - expected).norm()) / moved
                if options.device == "cpu" and apart > APART:
                    raise RuntimeError(
                        f"{mode} needs the weights of the plain loop, found them {apart:.2g} of "
                        "the way apart that training goes"
                    )
            for n in options.processes:
                found[f"processes {n}"] = in_processes(case, n)
            for mode, each in found.items():
                ratio = each["images_per_second"] / plain["images_per_second"]
                named = {"mode": mode, "n_clients": n_clients, "size": size, "per_plain": ratio}
                results.append({**named, **each})
                memory = each["device_bytes"]
                rows.append(
                    (
                        f"{n_clients} x {size} px",
                        mode,
                        figure(each["images_per_second"]),
                        figure(ratio),
                        MISSING if memory is None else f"{memory / 1e6:.0f}",
                    )
                )
    titles = ("clients", "mode", "images / s", "/ sequential", "device MB")
    return results, Table(titles, tuple(rows))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two clients, two steps")
    parser.add_argument("--clients", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64], help="pixels")
    parser.add_argument("--steps", type=int, default=20, help="of each client")
    parser.add_argument("--processes", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="the JSON file")
    options = parser.parse_args(argv)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.quick:
        options.clients, options.sizes, options.steps = [2], [16], 2
        options.processes = options.processes[:1]
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    machine = describe_machine()
    results, table = run(options)
    if options.output is not None:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
        write_json(options.output, "clients_on_device", machine, settings, {"results": results})
    sys.stdout.write(f"{table.markdown()}\n")


if __name__ == "__main__":
    main()
