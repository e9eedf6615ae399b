"""A passive party and what a server, honest or not, can make it do."""

from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from torch import Tensor

from clients.vertical import VerticalClient
from clients.vertical_state import PartyState
from fedface.backbones import SmallConv
from fedface.privacy import BudgetSpent, EmbeddingRelease
from fedface.random import numpy_stream, stream
from fedface.vertical.augmentation import Augmentation
from fedface.vertical.passive import PassiveSettings
from fedface.vertical.pretraining import Pretraining
from fedface.vertical.scale import Quantile
from strategies.vertical_records import ALIGN, BACKWARD, EMBED, RELEASE, SAVE, request

N, DIM = 10, 8
ROWS = torch.tensor([3, 0, 7])

pytestmark = pytest.mark.usefixtures("flower_identity")


def client(folder: Path | None = None, secret: int = 1, **changes: object) -> VerticalClient:
    rng = numpy_stream(0, "views")
    settings = PassiveSettings(
        backbone=SmallConv(widths=(4, 4, 8, 8), embedding_size=DIM),
        scale=Quantile(),
        release=EmbeddingRelease(clip=1.0, sigma=0.5, n_releases=3),
    )
    arguments = {
        "party": 0,
        "name": "right",
        "images": rng.integers(0, 256, (N, 16, 16, 3)).astype(np.uint8),
        "tokens": tuple(f"{i:064x}" for i in range(N)),
        "settings": settings,
        "augmentation": Augmentation(shift=1),
        "pretraining": None,
        "public": None,
        "n_rounds": 4,
        "seed": 0,
        "secret": secret,
        "state": PartyState(folder),
        "device": torch.device("cpu"),
    }
    return VerticalClient(**{**arguments, **changes})  # type: ignore[arg-type]


def context() -> Context:
    return Context(1, 7, {"partition-id": 0}, RecordDict(), {})


def ask(kind: str, rows: Tensor | None = None, server_round: int = 1, gradient=None) -> Message:
    return request(7, kind, server_round, rows, gradient)


def gradient(value: float = 1.0, n: int = 3) -> Tensor:
    return value * torch.randn(n, DIM, generator=stream(0, "gradient"))


def z_of(reply: Message) -> Tensor:
    return torch.from_numpy(reply.content["embeddings"]["z"].numpy().copy())


def number_of(reply: Message) -> int:
    return int(reply.content["metrics"]["release"])


def two_steps(own: VerticalClient, where: Context, other: VerticalClient | None = None) -> Message:
    """One embed, one backward that asks for more; ``other`` answers the second."""
    first = own.train(ask(EMBED, ROWS), where)
    answer = (number_of(first), gradient())
    return (other or own).train(ask(BACKWARD, ROWS + 1, gradient=answer), where)


def test_it_sends_its_tokens() -> None:
    own = client()
    reply = own.align(ask(ALIGN), context())
    assert tuple(reply.content["alignment"]["tokens"]) == own.tokens


def test_it_answers_for_the_rows_asked_and_numbers_its_releases() -> None:
    own, where = client(), context()
    first = own.train(ask(EMBED, ROWS), where)
    assert z_of(first).shape == (3, DIM) and number_of(first) == 1
    assert first.content["records"]["rows"].numpy().tolist() == ROWS.tolist()
    second = own.train(ask(BACKWARD, ROWS + 1, gradient=(1, gradient())), where)
    assert number_of(second) == 2
    assert second.content["records"]["rows"].numpy().tolist() == (ROWS + 1).tolist()
    last = own.train(ask(BACKWARD, gradient=(2, gradient())), where)
    assert set(last.content) == {"metrics"}


def test_it_does_not_matter_which_process_answers() -> None:
    """Another worker has nothing but the context: what it releases and learns is the same."""
    own, where = client(), context()
    whole = two_steps(own, where)
    end = own.save(ask(SAVE), where)
    own, other, there = client(), client(), context()
    moved = two_steps(own, there, other)
    assert torch.equal(z_of(whole), z_of(moved))
    third = client()
    assert dict(third.save(ask(SAVE), there).content["metrics"]) == dict(end.content["metrics"])
    tensors = [c._live[0].tensors() for c in (third, own)]  # type: ignore[index]
    before = tensors[1]["model.bottom.fc.weight"]
    assert not torch.equal(tensors[0]["model.bottom.fc.weight"], before)


def test_the_gradient_moves_the_bottom_model() -> None:
    def after(value: float) -> Tensor:
        own, where = client(), context()
        own.train(ask(EMBED, ROWS), where)
        own.train(ask(BACKWARD, gradient=(1, gradient(value))), where)
        return own._live[0].tensors()["model.bottom.fc.weight"]  # type: ignore[index]

    start = client().settings.build(16, N, stream(0, "passive party", 0)).bottom.fc.weight
    decayed = after(0.0) - start
    assert decayed.abs().max() < 1e-3
    assert (after(10.0) - start).abs().max() > 10 * decayed.abs().max()


def test_the_same_messages_get_the_same_noise_and_any_other_gets_another() -> None:
    def released(secret: int = 1, rows: Tensor = ROWS, server_round: int = 1) -> Tensor:
        return z_of(client(secret=secret).train(ask(EMBED, rows, server_round), context()))

    assert torch.equal(released(), released())
    assert not torch.equal(released(), released(secret=2))
    assert not torch.equal(released()[:2], released(rows=ROWS[:2]))
    assert not torch.equal(released(), released(server_round=2))


def test_a_server_that_asks_again_never_sees_two_embeddings_under_one_noise() -> None:
    """After a rollback to the same state, another gradient means other noise too."""

    def second(value: float) -> Tensor:
        own, where = client(), context()
        own.train(ask(EMBED, ROWS), where)
        return z_of(own.train(ask(BACKWARD, ROWS, gradient=(1, gradient(value))), where))

    small, none = second(1e-6), second(0.0)  # all but the same bottom model
    assert (small - none).std() > 0.3


def test_each_release_is_charged_and_the_budget_ends_it() -> None:
    own, where = client(), context()
    for _ in range(3):
        own.train(ask(EMBED, ROWS), where)
    with pytest.raises(BudgetSpent, match="nothing was released"):
        own.train(ask(EMBED, ROWS), where)
    reply = own.save(ask(SAVE), where)
    metrics = reply.content["metrics"]
    assert metrics["most-releases"] == 3 and metrics["all-releases"] == 9
    assert metrics["zero-out"] < metrics["replace-one"]
    assert z_of(own.train(ask(EMBED, ROWS + 1), where)).shape == (3, DIM)


def test_inference_is_released_once_until_the_bottom_model_changes() -> None:
    own, where = client(), context()
    first = z_of(own.evaluate(ask(RELEASE, ROWS), where))
    again = z_of(client().evaluate(ask(RELEASE, ROWS), where))
    assert torch.equal(first, again)
    own.train(ask(EMBED, torch.tensor([1])), where)
    assert torch.equal(z_of(own.evaluate(ask(RELEASE, ROWS), where)), first)
    release = own.train(ask(EMBED, torch.tensor([1])), where)
    own.train(ask(BACKWARD, gradient=(number_of(release), gradient(n=1))), where)
    assert not torch.equal(z_of(own.evaluate(ask(RELEASE, ROWS), where)), first)
    assert own.save(ask(SAVE), where).content["metrics"]["all-releases"] == 8


UNKNOWN = "party right needs rows that it holds.*first is "


@pytest.mark.parametrize(
    ("kind", "rows", "answer", "error"),
    [
        (EMBED, torch.tensor([0, 10]), None, f"{UNKNOWN}10"),
        (EMBED, torch.tensor([-1]), None, f"{UNKNOWN}-1"),
        (EMBED, torch.zeros(0, dtype=torch.int64), None, "party right needs rows of shape"),
        (EMBED, torch.tensor([0.5]), None, "party right needs rows of shape"),
        (RELEASE, None, None, "party right needs rows to embed, got none"),
        (BACKWARD, ROWS, (1, gradient()), "waits for it, none, got that of 1"),
    ],
)
def test_a_wrong_question_is_refused_by_name(kind: str, rows, answer, error: str) -> None:
    own, where = client(), context()
    use = own.evaluate if kind == RELEASE else own.train
    with pytest.raises(ValueError, match=error):
        use(ask(kind, rows, gradient=answer), where)
    assert own.state.transcript(where) is None


@pytest.mark.parametrize(
    ("answers", "wrong", "error"),
    [
        (2, gradient(), "waits for it, 1, got that of 2"),
        (1, gradient(n=2), "gradient needs shape"),
        (1, float("nan") * gradient(), "gradient needs shape .* that are not"),
    ],
)
def test_after_a_wrong_gradient_it_is_what_it_was(answers: int, wrong: Tensor, error: str) -> None:
    own, where = client(), context()
    own.train(ask(EMBED, ROWS), where)
    before = own.state.transcript(where)
    with pytest.raises(ValueError, match=error):
        own.train(ask(BACKWARD, ROWS, gradient=(answers, wrong)), where)
    assert own.state.transcript(where) == before
    good = own.train(ask(BACKWARD, ROWS + 1, gradient=(1, gradient())), where)
    assert torch.equal(z_of(good), z_of(two_steps(client(), context())))


def test_a_party_resumes_from_its_own_file(tmp_path: Path) -> None:
    def second_round(own: VerticalClient, where: Context) -> Tensor:
        return z_of(own.train(ask(EMBED, ROWS, 2), where))

    own, where = client(tmp_path), context()
    two_steps(own, where)
    own.save(ask(SAVE), where)
    kept = second_round(own, where)
    assert torch.equal(second_round(client(tmp_path), context()), kept)
    assert not torch.equal(second_round(client(tmp_path / "other"), context()), kept)


def test_pretraining_happens_once_and_moves_with_the_context() -> None:
    public = (
        numpy_stream(0, "public").integers(0, 256, (6, 16, 16, 3)).astype(np.uint8),
        np.array([0, 0, 0, 1, 1, 1]),
    )
    settings = {"pretraining": Pretraining(epochs=1, batch_size=3), "public": public}
    where = context()
    pretrained = z_of(client(**settings).train(ask(EMBED, ROWS), where))
    assert not torch.equal(pretrained, z_of(client().train(ask(EMBED, ROWS), context())))
    release = client().train(ask(BACKWARD, ROWS, gradient=(1, gradient())), where)  # no public data
    assert number_of(release) == 2
