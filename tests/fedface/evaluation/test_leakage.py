import numpy as np
import pytest
import torch

from fedface.evaluation.leakage import (
    Gallery,
    inversion_leakage,
    label_leakage,
    leak_auc,
    nearest_is_right,
)
from fedface.random import numpy_stream, stream


def unit(rows) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_nearest_picture_decides_and_ties_are_shared() -> None:
    gallery = Gallery(unit([[1, 0], [0, 1], [0, 1]]), np.array([7, 8, 9]))
    probes = unit([[1, 0.1], [0.1, 1], [1, 0.1], [0, 1]])
    found = nearest_is_right(probes, np.array([7, 8, 8, 9]), gallery)
    assert found.tolist() == [1.0, 0.5, 0.0, 0.5]
    with pytest.raises(ValueError, match="first is 5"):
        nearest_is_right(probes[:1], np.array([5]), gallery)


class Pixels:
    """A recogniser that looks at the first row of pixels, and the same of nothing at all."""

    def __call__(self, images: torch.Tensor) -> np.ndarray:
        return unit(images[:, :, 0].flatten(1).numpy() + 1e-3)


@pytest.fixture(scope="module")
def faces():
    """Six people, five pictures of each: a pattern of their own and a little noise."""
    rng = stream(0, "faces")
    patterns = torch.rand(6, 3, 12, 12, generator=rng) * 2 - 1
    people = torch.arange(6).repeat_interleave(5)
    images = patterns[people] + 0.05 * torch.randn(30, 3, 12, 12, generator=rng)
    return images, people.numpy(), patterns


def measured(faces, reconstructed):
    images, people, patterns = faces
    gallery = Gallery(Pixels()(patterns), np.arange(6))
    rng = numpy_stream(0, "bootstrap")
    return inversion_leakage(reconstructed, images, people, gallery, Pixels(), rng, 100)


def test_the_truth_scores_one_and_grey_scores_nothing_above_itself(faces) -> None:
    images, _, _ = faces
    truth = measured(faces, images)
    assert truth.ssim == pytest.approx(1.0)
    assert truth.rank_one == truth.true_rank_one == 1.0
    assert truth.grey_rank_one == pytest.approx(1 / 6)
    assert truth.lift == pytest.approx(5 / 6)
    assert truth.lift_low <= truth.lift <= truth.lift_high <= 1
    grey = measured(faces, torch.zeros_like(images))
    assert grey.ssim == grey.grey_ssim < 0.5
    assert (grey.lift, grey.lift_low, grey.lift_high) == (0.0, 0.0, 0.0)
    assert (grey.n, grey.n_identities) == (30, 6)


def test_a_mean_face_has_structure_but_no_identity() -> None:
    """Faces share their structure: the mean of all beats grey in SSIM and tells nobody apart."""
    rng = stream(0, "alike")
    shared = torch.rand(3, 12, 12, generator=rng) * 2 - 1
    patterns = shared + 0.3 * torch.randn(6, 3, 12, 12, generator=rng)
    people = torch.arange(6).repeat_interleave(2)
    world = patterns[people], people.numpy(), patterns
    found = measured(world, patterns.mean(0).expand(12, -1, -1, -1))
    assert found.ssim > found.grey_ssim + 0.2
    assert abs(found.lift) < 1e-9


def test_wrong_people_lower_the_lift(faces) -> None:
    images, _, _ = faces
    assert measured(faces, images.roll(5, 0)).lift < 0


def test_labels_stand_beside_a_constant_guess() -> None:
    found = label_leakage(np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0]))
    assert (found.accuracy, found.majority, found.lift, found.n) == (0.75, 0.75, 0.0, 4)


def test_auc_is_the_share_of_pairs_in_order() -> None:
    scores, positive = np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])
    pairs = [(p, n) for p in scores[2:] for n in scores[:2]]
    assert leak_auc(scores, positive) == np.mean([p > n for p, n in pairs])
    assert leak_auc(np.zeros(4), positive) == 0.5


def test_impossible_inputs_are_refused(faces) -> None:
    images, people, patterns = faces
    gallery, rng = Gallery(Pixels()(patterns), np.arange(6)), numpy_stream(0)
    with pytest.raises(ValueError, match="one reconstruction"):
        inversion_leakage(images[:3], images, people, gallery, Pixels(), rng)
    with pytest.raises(ValueError, match="n_bootstrap"):
        inversion_leakage(images, images, people, gallery, Pixels(), rng, 10)
    with pytest.raises(ValueError, match="two"):
        label_leakage(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="positives"):
        leak_auc(np.zeros(3), np.zeros(3))
