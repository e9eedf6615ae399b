"""The active party as a client, and what a server, honest or not, can make it do."""

from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from torch import Tensor

from clients.vertical_active import ActiveClient
from clients.vertical_state import PartyState
from fedface.random import stream
from fedface.vertical import ActiveParty, Step
from tests.strategies.test_vertical import DIM, N, side

pytestmark = pytest.mark.usefixtures("flower_identity")

ROWS = torch.arange(N - 1)
BATCHES = [torch.tensor([0, 3, 5]), torch.tensor([1, 2])]


def client(folder: Path | None = None) -> ActiveClient:
    return ActiveClient(side(own=True), PartyState(folder))


def context() -> Context:
    return Context(1, 7, {"partition-id": 2}, RecordDict(), {})


def ask(kind: str, server_round: int = 1, start: int = 0, **arrays: dict[str, Tensor]) -> Message:
    content = {
        record: ArrayRecord({name: Array(value.numpy()) for name, value in values.items()})
        for record, values in arrays.items()
    }
    config = ConfigRecord({"server-round": server_round, "start": start})
    return Message(RecordDict({**content, "config": config}), 7, kind)


def begin(own: ActiveClient, where: Context, completed: int = 0, rows: Tensor = ROWS) -> Message:
    return own.start(ask("train.start", completed + 1, aligned={"rows": rows}), where)


def batch(batches: list[Tensor]) -> dict[str, Tensor]:
    sizes = torch.tensor([len(b) for b in batches])
    return {"records": torch.cat(batches), "sizes": sizes}


def z(n: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(n, DIM, generator=stream(seed, "z"))


def step(own: ActiveClient, where: Context, server_round: int = 1, seed: int = 0) -> Message:
    message = ask("train.steps", server_round, batch=batch(BATCHES), embeddings={"1": z(5, seed)})
    return own.steps(message, where)


def tensors(own: ActiveClient) -> dict[str, Tensor]:
    assert own._live is not None
    return own._live[0].tensors()


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(v, right[k]) for k, v in left.items())


def test_it_says_which_records_it_trains_on_and_steps() -> None:
    own, where = client(), context()
    numbers = begin(own, where).content["numbers"]
    assert numbers["training"].numpy().tolist() == list(range(N - 3))
    assert numbers["measured"].numpy().tolist() == [N - 3, N - 2]
    before = tensors(own)
    reply = step(own, where)
    assert reply.content["gradients"]["1"].numpy().shape == (5, DIM)
    assert reply.content["losses"]["losses"].numpy().shape == (2, 3)
    assert not equal(before, tensors(own))


def test_it_does_not_matter_which_process_answers() -> None:
    own, where = client(), context()
    begin(own, where)
    step(own, where)
    whole = step(own, where, seed=1)
    first, second, there = client(), client(), context()
    begin(first, there)
    step(first, there)
    moved = step(second, there, seed=1)  # has nothing but the context
    for record, name in (("gradients", "1"), ("losses", "losses")):
        assert np.array_equal(
            moved.content[record][name].numpy(), whole.content[record][name].numpy()
        )
    assert equal(tensors(second), tensors(own))
    stale = step(first, there, seed=2)  # lives in the past: it reads the context
    assert np.array_equal(
        stale.content["losses"]["losses"].numpy(),
        step(own, where, seed=2).content["losses"]["losses"].numpy(),
    )


def test_a_resumed_party_takes_the_steps_that_it_would_have(tmp_path: Path) -> None:
    own, where = client(tmp_path), context()
    begin(own, where)
    step(own, where)
    own.save(ask("train.save", 1), where)
    step(own, where, server_round=2)
    again, there = client(tmp_path), context()
    begin(again, there, completed=1)
    step(again, there, server_round=2)
    assert equal(tensors(again), tensors(own))
    with pytest.raises(ValueError, match="aligned records that it saved after round 1"):
        begin(client(tmp_path), context(), completed=1, rows=ROWS.flip(0))
    with pytest.raises(ValueError, match="saved after round 1, got 11 after round 2"):
        begin(client(tmp_path), context(), completed=2)
    with pytest.raises(ValueError, match="needs the state that it saved after round 1, found none"):
        begin(client(tmp_path / "empty"), context(), completed=1)


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"batch": batch([torch.tensor([0, N - 2])])}, "needs training records"),
        ({"batch": batch([torch.tensor([0, -1])])}, "needs training records"),
        ({"batch": {**batch(BATCHES), "sizes": torch.tensor([9])}}, "sizes that add up"),
        ({"batch": batch(BATCHES), "embeddings": {"2": z(5)}}, r"parties 0\.\.1, got \[2\]"),
        ({"batch": batch(BATCHES), "embeddings": {"0": z(4)}}, r"shape \(5, 8\)"),
        ({"batch": batch(BATCHES), "embeddings": {"0": 100 * z(5)}}, "clipped at 1"),
        ({"batch": batch(BATCHES), "embeddings": {"0": torch.nan * z(5)}}, "finite"),
    ],
)
def test_what_is_wrong_is_refused_and_changes_nothing(
    arrays: dict[str, dict[str, Tensor]], why: str
) -> None:
    own, where = client(), context()
    with pytest.raises(ValueError, match=r"needs train\.start first"):
        step(own, where)
    begin(own, where)
    step(own, where)
    before = tensors(own)
    with pytest.raises(ValueError, match=why):
        own.steps(ask("train.steps", **arrays), where)
    own.measure(ask("evaluate.measure", batch=batch([torch.tensor([9, 10])])), where)
    own.save(ask("train.save"), where)
    assert equal(tensors(own), before)


def test_a_step_that_fails_half_way_never_was(monkeypatch: pytest.MonkeyPatch) -> None:
    own, where = client(), context()
    begin(own, where)
    step(own, where)
    before = tensors(own)
    original, calls = ActiveParty.step, []

    def fails(*arguments: object) -> Step:
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("the loss is not finite")
        return original(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(ActiveParty, "step", fails)
        with pytest.raises(ValueError, match="the loss is not finite"):
            step(own, where, seed=1)
    own.save(ask("train.save"), where)
    assert equal(tensors(own), before)


def test_it_keeps_embeddings_and_trains_alone() -> None:
    own, where = client(), context()
    begin(own, where)
    records = [torch.arange(4), torch.arange(4, 9)]
    pieces = {"0.0": z(4), "1.0": z(5), "1.1": z(5, 1)}
    own.keep(ask("train.keep", batch=batch(records), embeddings=pieces), where)
    kept = tensors(own)
    assert torch.equal(kept["kept.0"][:4], z(4)) and torch.equal(kept["kept.1"][4:9], z(5, 1))
    assert torch.isfinite(kept["kept.1"]).all()  # where nothing arrived something stands in
    reply = own.alone(ask("train.alone", batch=batch(BATCHES)), where)
    assert reply.content["losses"]["losses"].numpy().shape == (2, 3)
    with pytest.raises(ValueError, match=r"got one of \(piece, party\) \(2, 0\)"):
        own.keep(ask("train.keep", batch=batch(records), embeddings={"2.0": z(4)}), where)
