import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message, MetricRecord
from rich.console import Console

from fedface.config import ConfigError
from fedface.report.run_folder import Checkpoint, RunFolder
from simulations.app import client_app
from simulations.build import build_data
from simulations.display import Display
from simulations.schema import RunConfig
from simulations.server import RunFailed, Server
from tests.simulations.in_process import Tamper, filled_with, in_process
from tests.simulations.tiny import N_CLIENTS, tiny_config


def server_of(config: RunConfig) -> Server:
    """The server of ``config``, in the run folder as it is or in a new one."""
    folder = RunFolder(config.folder)
    if not folder.exists():
        RunFolder.create(config.folder, config.to_yaml_dict(), {})
    display = Display(Console(quiet=True), "tiny", config.federation.n_rounds, N_CLIENTS)
    return Server(config, build_data(config), folder, display, torch.device("cpu"))


def serve(config: RunConfig, tamper: Tamper | None = None) -> RunFolder:
    """Runs what is left of ``config`` in this process."""
    server = server_of(config)
    with in_process(tamper):
        config.engine.run(server, client_app(config), config.federation.n_clients)
    return server.folder


def only(client: int, change: Callable[[Message], Message | None]) -> Tamper:
    return lambda partition, _, reply: change(reply) if partition == client else reply


def metric(name: str, value: Any) -> Callable[[Message], Message]:
    def change(reply: Message) -> Message:
        if reply.has_content():
            reply.content["metrics"][name] = value
        return reply

    return change


def test_every_round_leaves_its_facts_and_its_checkpoint(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, evaluation={"every": 2})
    folder = serve(config)
    facts = [(event["event"], event["round"]) for event in folder.events()]
    assert facts == [
        ("round", 1),
        ("round", 2),
        ("evaluation", 2),
        ("round", 3),
        ("evaluation", 3),  # the last round is measured though it is not due
    ]
    assert folder.checkpoint_rounds() == [1, 2, 3]
    assert sum(1 for _ in (folder.path / "tensorboard").iterdir()) == 1
    for event in folder.events("round"):
        assert [client["client"] for client in event["clients"]] == [0, 1, 2, 3]
        assert sum(client["malicious"] for client in event["clients"]) == 1
        assert event["attack"] and not event["rejected"] and event["kept_global"] is None
        assert sum(client["trust"] for client in event["clients"]) == pytest.approx(1)
        assert event["pruned"] == [] and event["loss"] > 0 and event["seconds"] > 0


def test_the_model_moves_by_the_trusted_updates(tmp_path: Path) -> None:
    """Checkpoint n + 1 = checkpoint n + trust-weighted updates, as the clients sent them."""
    sent: dict[tuple[int, int], dict[str, torch.Tensor]] = {}

    def spy(client: int, server_round: int, reply: Message) -> Message:
        arrays = reply.content.array_records["arrays"]
        sent[server_round, client] = {k: torch.from_numpy(a.numpy()) for k, a in arrays.items()}
        return reply

    config = tiny_config(tmp_path, federation={"n_rounds": 2})
    first = {k: v.clone() for k, v in server_of(config).weights.items()}
    folder = serve(config, spy)
    second = folder.latest()
    assert second is not None and second.server_round == 2
    for name in first:
        expected = first[name].double()
        for event in folder.events("round"):
            for client in event["clients"]:
                update = sent[event["round"], client["client"]][name]
                expected = expected + client["trust"] * update.double()
        torch.testing.assert_close(second.model[name].double(), expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(second.model[name], first[name])


def test_two_servers_of_one_configuration_agree_bit_for_bit(tmp_path: Path) -> None:
    """Whatever the node ids and the order of replies, local evaluation included."""
    settings = {"evaluation": {"local": True}, "aggregator": {"name": "ariba"}}
    folders = [serve(tiny_config(tmp_path / str(n), **settings)) for n in range(2)]
    (a, b) = ([{**e, "seconds": 0} for e in folder.events()] for folder in folders)
    assert a == b
    first, second = (folder.latest() for folder in folders)
    assert first is not None and second is not None
    for own, other in ((first.model, second.model), (first.state, second.state)):
        assert own.keys() == other.keys()
        assert all(torch.equal(own[name], other[name]) for name in own)
    assert first.state, "ARIBA keeps what it saw"


def test_the_schedule_decides_in_which_rounds_somebody_attacks(tmp_path: Path) -> None:
    schedule = {"name": "single_shot", "round": 2}
    folder = serve(tiny_config(tmp_path, attack={"schedule": schedule}))
    assert [event["attack"] for event in folder.events("round")] == [False, True, False]


def test_nobody_attacks_without_malicious_sites(tmp_path: Path) -> None:
    folder = serve(tiny_config(tmp_path, attack={"malicious_share": 0.0}))
    assert not any(event["attack"] for event in folder.events("round"))
    assert not any(c["malicious"] for event in folder.events("round") for c in event["clients"])
    assert all(event["backdoor"] is not None for event in folder.events("evaluation"))


def test_the_local_evaluation_asks_every_site_of_the_round(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, evaluation={"local": True})
    server, summed = server_of(config), []
    aggregate = server.strategy.aggregate_evaluate

    def spy(server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        replies = list(replies)
        summed.extend(reply.metadata.src_node_id for reply in replies)
        return aggregate(server_round, replies)

    server.strategy.aggregate_evaluate = spy  # type: ignore[method-assign]
    with in_process(only(0, lambda reply: filled_with(torch.nan, reply))) as grids:
        config.engine.run(server, client_app(config), N_CLIENTS)
    asked = [node for node, kind in grids[0].asked if kind == "evaluate"]
    assert len(set(asked[:N_CLIENTS])) == N_CLIENTS, "also the one whose update was dropped"
    assert summed == asked, "float sums need one order, whatever the order of arrival"
    for event in server.folder.events("round"):
        assert set(event["rejected"]) == {"0"}
        assert event["local"]["loss"] > 0 and 0 <= event["local"]["accuracy"] <= 1


MALFORMED: dict[str, tuple[Callable[[Message], Message | None], str]] = {
    "NaN": (lambda reply: filled_with(torch.nan, reply), "needs finite values, got NaN"),
    "infinity": (lambda reply: filled_with(torch.inf, reply), "needs finite values"),
    "silence": (lambda reply: None, "no reply in time"),
    "claims too much": (metric("num-examples", 10**9), "needs an integer in 1..10000000"),
    "claims nothing": (metric("num-examples", 0), "needs an integer in 1.."),
    "no loss": (metric("loss", [1.0]), "metrics[loss] needs a finite number"),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_client_is_dropped_and_named(fault: str, tmp_path: Path) -> None:
    change, why = MALFORMED[fault]
    config = tiny_config(tmp_path, federation={"n_rounds": 2, "timeout": 1.0})
    folder = serve(config, only(2, change))
    for event in folder.events("round"):
        assert list(event["rejected"]) == ["2"] and why in event["rejected"]["2"]
        assert [client["client"] for client in event["clients"]] == [0, 1, 3]
        assert event["kept_global"] is None
    last = folder.latest()
    assert last is not None and all(value.isfinite().all() for value in last.model.values())


def test_a_client_that_raises_is_dropped_and_named(tmp_path: Path) -> None:
    """Site 1's private head was damaged: the other three go on."""
    config = tiny_config(tmp_path, federation={"n_rounds": 1})
    site = config.folder / "sites" / "0001"
    site.mkdir(parents=True)
    (site / "head-round-000000.safetensors").write_bytes(b"no head")
    (event,) = serve(config).events("round")
    assert list(event["rejected"]) == ["1"]
    assert event["rejected"]["1"].startswith(f"client failed: ValueError: {site}")


def test_an_absurd_claimed_loss_ends_no_run(tmp_path: Path) -> None:
    folder = serve(tiny_config(tmp_path), only(1, metric("loss", 1e308)))
    assert [event["loss"] for event in folder.events("round")] == [None] * 3
    assert folder.checkpoint_rounds() == [1, 2, 3]


def test_a_model_without_direction_is_a_recorded_fact(tmp_path: Path) -> None:
    def destroy(client: int, server_round: int, reply: Message) -> Message:
        return filled_with(1e38, reply) if server_round == 3 else reply

    folder = serve(tiny_config(tmp_path), destroy)
    last = folder.events("evaluation")[-1]
    assert last["round"] == 3 and "embeddings need a finite length" in last["failed"]
    assert set(last) == {"event", "round", "failed"}


def all_but(n_valid: int, rounds: set[int]) -> Tamper:
    """In ``rounds`` only the first ``n_valid`` clients reply validly."""

    def tamper(client: int, server_round: int, reply: Message) -> Message:
        bad = server_round in rounds and client >= n_valid
        return filled_with(torch.nan, reply) if bad else reply

    return tamper


def test_a_round_with_too_few_replies_keeps_the_model(tmp_path: Path) -> None:
    folder = serve(tiny_config(tmp_path), all_but(1, {2}))
    kept = [event["kept_global"] for event in folder.events("round")]
    assert kept == [None, "needed 2 valid replies, got 1", None]
    models = [
        torch.cat([v.flatten() for _, v in sorted(load_round(folder, r).items())])
        for r in (1, 2, 3)
    ]
    assert torch.equal(models[0], models[1]) and not torch.equal(models[1], models[2])


def load_round(folder: RunFolder, server_round: int) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder.path / "checkpoints" / f"round-{server_round:06d}.safetensors")


def test_the_run_fails_after_too_many_such_rounds_in_a_row(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, federation={"n_rounds": 6, "max_failed_rounds": 2})
    with pytest.raises(RunFailed) as caught:
        serve(config, all_but(1, {1, 3, 4}))
    message = str(caught.value)
    assert message.startswith("2 rounds in a row kept the global model")
    assert "needed 2 valid replies, got 1" in message
    assert "client 1: arrays[" in message and "client 3: arrays[" in message
    folder = RunFolder(config.folder)
    assert [event["round"] for event in folder.events("round")] == [1, 2, 3, 4]
    assert folder.checkpoint_rounds() == [1, 2, 3]


def test_many_dropped_replies_are_summed_up(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, federation={"max_failed_rounds": 1})
    with pytest.raises(RunFailed, match=r"; and 1 more$"):
        serve(config, all_but(0, {1}))


def test_a_resumed_failure_is_still_a_failure(tmp_path: Path) -> None:
    """The last round failed the run: resuming tries that round again and does not call it done."""
    config = tiny_config(tmp_path, federation={"n_rounds": 3, "max_failed_rounds": 2})
    for _ in range(2):
        with pytest.raises(RunFailed, match="2 rounds in a row"):
            serve(config, all_but(1, {2, 3}))
    assert server_of(config).completed == 2
    folder = serve(config)
    assert [e["kept_global"] is None for e in folder.events("round")] == [True, False, True]


def test_a_checkpoint_of_another_backbone_is_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    folder = RunFolder.create(config.folder, config.to_yaml_dict(), {})
    folder.save(Checkpoint(1, {"other.weight": torch.zeros(2)}, {}))
    with pytest.raises(ValueError, match="needs the tensors of the configured backbone, differing"):
        server_of(config)


def test_tensorboard_holds_the_recorded_figures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = serve(tiny_config(tmp_path, aggregator={"name": "ariba"}))
    board = EventAccumulator(str(folder.path / "tensorboard"))
    board.Reload()
    tags = set(board.Tags()["scalars"])
    assert {"train/loss", "test/tar_at_0.1", "test/eer", "backdoor/asr_at_0.01"} <= tags
    assert {f"score/client_{client}" for client in range(4)} <= tags
    recorded = [event["loss"] for event in folder.events("round")]
    assert [point.value for point in board.Scalars("train/loss")] == pytest.approx(recorded)
    assert [point.step for point in board.Scalars("test/eer")] == [1, 2, 3]


def test_batch_statistics_travel_apart_and_are_saved(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path, model={"backbone": {"norm": "batch"}}, attack={"malicious_share": 0.0}
    )
    folder = serve(config)
    last = folder.latest()
    assert last is not None
    counters = [name for name in last.model if name.endswith("num_batches_tracked")]
    assert counters and all(last.model[name] == 9 for name in counters)  # 3 rounds of 3 batches
    assert json.dumps(folder.events())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_server_without_a_gpu_refuses_to_aggregate_on_one(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, federation={"aggregate_on": "cuda"})
    with pytest.raises(ConfigError, match=r"federation\.aggregate_on: needed cpu, or a GPU"):
        server_of(config)
