import pytest
import torch

from fedface.random import stream
from fedface.vertical.channel import Channel

CHANNEL = Channel("clinic", 8, 1.0, 0.5)


def test_honest_embeddings_pass() -> None:
    h = torch.nn.functional.normalize(torch.randn(20_000, 8, generator=stream(0, "h")))
    CHANNEL.check(h + 0.5 * torch.randn(h.shape, generator=stream(1, "noise")), 20_000)
    Channel("clinic", 8, 1.0, 0.0).check(h, 20_000)
    Channel("clinic", 8, None, 0.0).check(1e6 * h, 20_000)
    CHANNEL.check(torch.zeros(0, 8), 0)


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.zeros(3, 7), r"party clinic needs .* shape \(4, 8\), got \(3, 7\)"),
        (torch.zeros(4, 8, dtype=torch.int64), "floats .*int64"),
        (torch.zeros(4, 8).fill_(torch.nan), "party clinic .* finite embeddings, got 4 rows of 4"),
        (torch.full((4, 8), 10.0), "party clinic .* clipped at 1 .* got one of 28.2843"),
        (torch.full((4, 8), 3e38), "clipped at 1"),
    ],
)
def test_what_no_honest_party_sends_is_refused_by_name(z: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CHANNEL.check(z, 4)


def test_without_noise_the_bound_is_exact() -> None:
    with pytest.raises(ValueError, match=r"at most 1\.00001 long, got one of 1\.1"):
        Channel("clinic", 1, 1.0, 0.0).check(torch.tensor([[1.1]]), 1)
