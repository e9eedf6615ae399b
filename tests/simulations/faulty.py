"""A run whose sites have faults, on the real engine: ``python -m tests.simulations.faulty``."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from rich.console import Console

from simulations import app
from simulations.execution import run
from simulations.schema import RunConfig
from simulations.server import RunFailed
from tests.simulations.in_process import filled_with
from tests.simulations.tiny import tiny_config


def faulty_app(config: RunConfig, faults: Mapping[int, str]) -> ClientApp:
    """The ClientApp of ``config``; partition -> what its training does wrong in every round.

    ``"raises"``, sends ``"NaN"``, or ``"dies"`` as a process that the kernel ends does,
    in every round or ``"dies once"``.
    """
    honest, faults = app.client_app(config), dict(faults)
    faulty = ClientApp()

    @faulty.query()
    def query(message: Message, context: Context) -> Message:
        return honest(message, context)

    @faulty.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return honest(message, context)

    @faulty.train()
    def train(message: Message, context: Context) -> Message:
        fault = faults.get(int(context.node_config["partition-id"]))
        if fault == "raises":
            raise RuntimeError("the disk is full")
        if fault == "dies" or (fault == "dies once" and not (config.output / "died").exists()):
            (config.output / "died").touch()
            os._exit(1)
        reply = honest(message, context)
        return filled_with(float("nan"), reply) if fault == "NaN" else reply

    return faulty


def run_with(config: RunConfig, faults: Mapping[int, str]) -> None:
    """Runs ``config`` with these faults of its sites."""
    plain = app.client_app
    with pytest.MonkeyPatch.context() as patch:

        def faulty(own: RunConfig) -> ClientApp:
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(app, "client_app", plain)
                return faulty_app(own, faults)

        patch.setattr(app, "client_app", faulty)
        run(config, Console())


def main() -> None:
    """``faulty OUTPUT N_WORKERS``: site 0 of the tiny run kills the process it is trained in."""
    settings = {"engine": {"num_cpus": int(sys.argv[2])}}
    try:
        run_with(tiny_config(Path(sys.argv[1]), **settings), {0: "dies"})
    except RunFailed as error:
        sys.exit(f"run failed: {error}")


if __name__ == "__main__":
    main()
