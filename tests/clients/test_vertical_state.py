from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict

from clients.vertical_state import PartyMemory, PartyState


def context() -> Context:
    return Context(1, 7, {"partition-id": 0}, RecordDict(), {})


def memory(value: float = 1.0, **facts: object) -> PartyMemory:
    tensors = {"w": torch.full((2, 3), value), "n": torch.tensor(3), "none": torch.zeros(0, 4)}
    return PartyMemory(tensors, "abc", 5, (4, 2), True, **facts)


def same(left: PartyMemory, right: PartyMemory) -> bool:
    return (
        left.tensors.keys() == right.tensors.keys()
        and all(torch.equal(v, right.tensors[k]) for k, v in left.tensors.items())
        and all(
            getattr(left, name) == getattr(right, name)
            for name in ("transcript", "n_released", "pending", "is_stale")
        )
    )


def test_the_context_keeps_everything(tmp_path: Path) -> None:
    state, where = PartyState(None), context()
    assert state.transcript(where) is None
    assert state.load(where, 1) is None
    state.keep(where, memory())
    assert state.transcript(where) == "abc"
    found = state.load(where, 1)
    assert found is not None and same(found, memory())
    state.save(memory(), 1)  # without a folder nothing is written
    nothing = PartyMemory({"w": torch.ones(1)}, "start")
    state.keep(where, nothing)
    assert same(state.load(where, 1) or memory(), nothing)


def test_a_resumed_party_is_what_it_was_before_the_round(tmp_path: Path) -> None:
    state = PartyState(tmp_path / "party")
    assert state.load(context(), 5) is None
    for server_round in (1, 2, 3):
        state.save(memory(server_round), server_round)
    files = sorted(p.name for p in (tmp_path / "party").iterdir())
    assert files == ["party-round-000002.safetensors", "party-round-000003.safetensors"]
    for asked, value in ((3, 2.0), (4, 3.0), (9, 3.0)):
        found = state.load(context(), asked)
        assert found is not None and same(found, memory(value))
    assert state.load(context(), 2) is None
    state.save(memory(7.0), 2)  # resumed from round 1: what came later is void
    assert [p.name for p in (tmp_path / "party").iterdir()] == ["party-round-000002.safetensors"]


def test_the_context_comes_before_the_disk(tmp_path: Path) -> None:
    state, where = PartyState(tmp_path), context()
    state.save(memory(1.0), 1)
    state.keep(where, memory(2.0))
    found = state.load(where, 2)
    assert found is not None and found.tensors["w"][0, 0] == 2.0


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "party-round-000001.safetensors"
    path.write_bytes(b"no party")
    with pytest.raises(ValueError, match=r"party-round-000001.*needed a whole party"):
        PartyState(tmp_path).load(context(), 2)
