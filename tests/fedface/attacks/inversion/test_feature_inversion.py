import pytest
import torch

from fedface.attacks.inversion import FeatureInversion, Knowledge
from fedface.attacks.inversion.feature_inversion import check_observed
from fedface.random import stream

EMPTY = Knowledge(16, None, torch.zeros(0, 3, 16, 16), torch.zeros(0, 8))


@pytest.mark.parametrize(
    ("images", "embeddings"),
    [
        (torch.zeros(2, 3, 16, 16), torch.zeros(3, 8)),
        (torch.zeros(2, 3, 16, 8), torch.zeros(2, 8)),
        (torch.zeros(2, 3, 16, 16), torch.zeros(2)),
    ],
)
def test_shadow_pictures_and_embeddings_belong_together(images, embeddings) -> None:
    with pytest.raises(ValueError, match="knowledge needs"):
        Knowledge(16, None, images, embeddings)


def test_missing_knowledge_is_named() -> None:
    with pytest.raises(ValueError, match="a decoder needs two or more shadow images"):
        EMPTY.require_shadow("a decoder")


def test_observed_embeddings_are_checked() -> None:
    check_observed(torch.zeros(1, 4), 4)
    for wrong in (torch.zeros(0, 4), torch.zeros(1, 5), torch.full((1, 4), torch.nan)):
        with pytest.raises(ValueError, match="observed embeddings"):
            check_observed(wrong, 4)


def test_the_contract_itself_attacks_nothing() -> None:
    with pytest.raises(NotImplementedError):
        FeatureInversion()(torch.zeros(1, 8), EMPTY, stream(0))
