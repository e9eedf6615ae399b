import os
from pathlib import Path

import pytest
import torch
from flwr.app import Context
from torch import Tensor

from clients.state import SiteState
from tests.clients.sites import context

FILE = "head-round-{:06d}.safetensors"


def head(value: float) -> dict[str, Tensor]:
    return {"weight": torch.full((3, 2), value), "bias": torch.arange(3.0) + value}


def kept(state: SiteState, before: int, where: Context | None = None) -> float | None:
    """The value of the head that the site had before a round; None at its start."""
    found = state.load(where or context(), before)
    if found is None:
        return None
    value = found["weight"][0, 0].item()
    assert set(found) == {"weight", "bias"}
    assert all(torch.equal(found[name], expected) for name, expected in head(value).items())
    return value


def trained(folder: Path, *rounds: int) -> SiteState:
    """A site that took part in these rounds, its head in round r filled with r."""
    state, memory = SiteState(folder), context()
    for server_round in rounds:
        state.save(memory, server_round, head(server_round))
    return state


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sites" / "0003"


def test_a_new_site_has_no_head(folder):
    assert kept(SiteState(folder), 1) is None
    assert kept(SiteState(None), 1) is None
    assert not folder.exists()


def test_without_a_folder_the_context_alone_remembers():
    state, memory = SiteState(None), context()
    state.save(memory, 1, head(1))
    assert kept(state, 2, memory) == 1
    assert kept(state, 9, memory) == 1
    assert kept(state, 2) is None
    assert kept(state, 1, memory) is None


def test_the_head_survives_the_loss_of_the_context(folder):
    trained(folder, 1, 2)
    assert kept(SiteState(folder), 3) == 2


def test_the_context_outlives_the_folder(folder):
    memory = context()
    SiteState(folder).save(memory, 1, head(1))
    (folder / FILE.format(1)).unlink()
    assert kept(SiteState(folder), 2, memory) == 1


def test_the_head_never_looks_at_its_own_round_or_later_ones(folder):
    state = trained(folder, 4, 5)
    assert [kept(state, r) for r in (4, 5, 6, 7)] == [None, 4, 5, 5]


def test_a_context_that_is_ahead_of_the_server_is_not_believed(folder):
    state, memory = SiteState(folder), context()
    for server_round in (4, 5):
        state.save(memory, server_round, head(server_round))
    assert kept(state, 5, memory) == 4


def test_the_two_latest_rounds_are_on_disk(folder):
    trained(folder, 1, 2, 3, 4)
    assert files(folder) == [FILE.format(3), FILE.format(4)]


def test_a_site_that_takes_part_now_and_then_finds_its_last_head(folder):
    state = trained(folder, 2, 5, 9)
    assert files(folder) == [FILE.format(5), FILE.format(9)]
    assert [kept(state, r) for r in (6, 9, 10, 30)] == [5, 5, 9, 9]


@pytest.mark.parametrize("last", [1, 2, 7])
def test_a_server_that_died_in_a_round_repeats_it_from_the_same_head(folder, last):
    """The site has finished the round, the server has not: it resumes from the one before."""
    state = trained(folder, *range(1, last + 1))
    expected = last - 1 if last > 1 else None
    for _ in range(2):
        assert kept(state, last) == expected
        state.save(context(), last, head(last))
    assert kept(state, last + 1) == last


def test_rounds_of_an_abandoned_future_are_forgotten(folder):
    """The server resumed further back: what was trained after that is not to be used again."""
    state = trained(folder, 4, 8)
    state.save(context(), 5, head(5.5))
    assert files(folder) == [FILE.format(4), FILE.format(5)]
    assert [kept(state, r) for r in (5, 6, 9)] == [4, 5.5, 5.5]


def test_saving_a_round_again_replaces_it(folder):
    state = trained(folder, 1, 2)
    state.save(context(), 2, head(2.5))
    assert [kept(state, r) for r in (2, 3)] == [1, 2.5]


def test_a_kill_while_writing_leaves_the_old_heads(folder, monkeypatch):
    state = trained(folder, 1, 2)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            state.save(context(), 3, head(3))
    assert [kept(state, r) for r in (2, 3, 4)] == [1, 2, 2]
    state.save(context(), 3, head(3))
    assert kept(state, 4) == 3


@pytest.mark.parametrize(
    "name", ["head-round-000009.partial-77", "head-round-9.safetensors", "round-000009.safetensors"]
)
def test_other_files_are_not_looked_at(folder, name):
    state = trained(folder, 1)
    (folder / name).write_bytes(b"half a file")
    assert kept(state, 99) == 1


@pytest.mark.parametrize("content", [b"", b"\x10\x00", None])
def test_a_damaged_file_is_named(folder, content):
    state = trained(folder, 1, 2)
    path = folder / FILE.format(2)
    path.write_bytes(path.read_bytes()[:-4] if content is None else content)
    with pytest.raises(ValueError, match=rf"{path}: needed a whole head, found"):
        state.load(context(), 3)
    assert kept(state, 2) == 1


def test_sites_do_not_see_each_other(tmp_path):
    trained(tmp_path / "0000", 1)
    assert kept(SiteState(tmp_path / "0001"), 2) is None


def test_a_head_that_is_handed_out_is_a_copy(folder):
    state, memory = SiteState(folder), context()
    given = head(1)
    state.save(memory, 1, given)
    given["weight"].zero_()
    state.load(memory, 2)["weight"].zero_()
    assert kept(state, 2, memory) == 1 and kept(state, 2) == 1


def test_heads_may_be_views_with_gradients(folder):
    weight = torch.ones(2, 3, requires_grad=True)
    SiteState(folder).save(context(), 1, {"weight": weight.detach().T})
    assert SiteState(folder).load(context(), 2)["weight"].shape == (3, 2)
