import pytest
import torch
from pydantic import TypeAdapter

from fedface.privacy import AnyRelease, EmbeddingRelease
from fedface.privacy.baselines import UnclippedNoise, Unprotected
from fedface.random import stream


def test_unprotected_sends_embeddings_as_they_are_or_clipped() -> None:
    h = torch.tensor([[3.0, 4.0], [0.1, 0.0]])
    assert Unprotected().release(h, stream(0, "noise")) is h
    clipped = Unprotected(clip=1.0).release(h, stream(0, "noise"))
    assert torch.allclose(clipped, torch.tensor([[0.6, 0.8], [0.1, 0.0]]))
    assert Unprotected().noise == 0
    assert Unprotected().bound is None and Unprotected(clip=2).bound == 2


def test_unclipped_noise_leaves_the_length() -> None:
    h = torch.full((500, 4), 50.0)
    z = UnclippedNoise(sigma=0.5).release(h, stream(0, "noise"))
    assert (z - h).std().item() == pytest.approx(0.5, rel=0.1)
    assert (z - h).mean().item() == pytest.approx(0, abs=0.06)
    assert UnclippedNoise(sigma=0.5).bound is None


@pytest.mark.parametrize("release", [Unprotected(), UnclippedNoise(sigma=1)])
def test_baselines_have_no_account_and_say_so_and_refuse_nan(release) -> None:
    assert release.ledger(3) is None
    assert release.statement().startswith("No ")
    with pytest.raises(ValueError, match="finite"):
        release.release(torch.tensor([[torch.nan]]), stream(0, "noise"))


def test_the_union_reads_each_by_name() -> None:
    read = TypeAdapter(AnyRelease).validate_python
    assert isinstance(read({"name": "none"}), Unprotected)
    assert isinstance(read({"name": "unclipped_noise", "sigma": 1}), UnclippedNoise)
    gaussian = {"name": "gaussian", "epsilon": 1, "n_releases": 2}
    assert isinstance(read(gaussian), EmbeddingRelease)
