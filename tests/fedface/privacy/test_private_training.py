"""Private training: the noise's scale, sampling, public constants, and two defects of Opacus."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedface.backbones import SmallConv
from fedface.heads import CosFace
from fedface.privacy.accounting import Steps, epsilon
from fedface.privacy.audit import audit
from fedface.privacy.noise_check import check_noise
from fedface.privacy.private_training import noisy_mean, poisson_draw, train_privately
from fedface.privacy.units import ImagePrivacy, SubjectPrivacy
from fedface.random import numpy_stream, stream
from fedface.training.local import LocalTraining
from fedface.training.optimizers import SGD

SIZE, N_PEOPLE, D = 16, 6, 8
PLAIN = LocalTraining(
    batch_size=8, optimizer=SGD(learning_rate=1.0, momentum=0.0, weight_decay=0.0), flip=False
)


def site() -> tuple[nn.Module, nn.Module]:
    backbone = SmallConv(widths=(4, 4, 8, 8), embedding_size=D).build(SIZE, stream(0, "b"))
    return backbone, CosFace(scale=8, margin=0.1).build(D, N_PEOPLE, stream(0, "h"))


def data(n: int = 24) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images = numpy_stream(0, "images").integers(0, 256, (n, SIZE, SIZE, 3)).astype(np.uint8)
    return images, np.arange(n) % N_PEOPLE


def image_privacy(**fields: float) -> ImagePrivacy:
    return ImagePrivacy.model_validate(
        {"sample_rate": 0.5, "batch_size": 12, "noise_multiplier": 1.0, "delta": 1e-3, **fields}
    )


def update(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    privacy: ImagePrivacy | SubjectPrivacy,
    n_steps: int = 1,
    training: LocalTraining = PLAIN,
    seed: int = 0,
    noise_seed: int = 0,
) -> Tensor:
    """Backbone and head after training, minus before."""
    backbone, head = site()
    both = [*backbone.parameters(), *head.parameters()]
    before = torch.cat([p.detach().flatten().clone() for p in both])
    steps = Steps(privacy.noise(1, 1), privacy.sample_rate, n_steps)
    rngs = stream(seed, "draws"), stream(noise_seed, "noise")
    train_privately(backbone, head, images, labels, training, privacy, steps, *rngs)
    return torch.cat([p.detach().flatten() for p in both]) - before


def is_noise(residuals: Tensor, sigma: float) -> bool:
    """Whether the numbers look like N(0, sigma^2): exact tests that fail once in a thousand."""
    check = check_noise(residuals, sigma, 0.999)
    return check.low <= sigma <= check.high and check.shape_p_value > 1e-3


@pytest.mark.parametrize(("factor", "accepted"), [(1.0, True), (2 / 3, False), (1.5, False)])
def test_the_noise_has_the_promised_scale_and_no_other(factor: float, accepted: bool) -> None:
    privacy = image_privacy(noise_multiplier=2.0, clip=0.3, batch_size=5)
    noisy = update(*data(), privacy)
    silent = update(*data(), privacy.model_copy(update={"noise_multiplier": 0.0}))
    claimed = factor * 2.0 * 0.3 / 5  # z C / B, at learning rate 1
    assert is_noise(noisy - silent, claimed) is accepted


def test_noise_is_fresh_in_every_step_and_goes_onto_empty_draws() -> None:
    total = torch.zeros(4000)
    rng = stream(0, "n")
    first, second = (noisy_mean(total, 0.5, 2.0, 4, rng) for _ in range(2))
    assert is_noise(torch.cat([first, second]), 0.25)
    assert not torch.equal(first, second)
    nothing = update(*data(1), image_privacy(sample_rate=1e-9))
    assert is_noise(nothing, 1.0 / 12)


def test_units_are_drawn_on_their_own_at_the_public_rate() -> None:
    rng = stream(0, "p")
    draws = [poisson_draw(50, 0.3, rng) for _ in range(2000)]
    sizes = torch.tensor([float(len(draw)) for draw in draws])
    assert abs(sizes.mean() - 15) < 4 * (50 * 0.3 * 0.7 / 2000) ** 0.5
    assert abs(sizes.var() / (50 * 0.3 * 0.7) - 1) < 0.15  # of batches of a fixed size it is zero
    shares = torch.bincount(torch.cat(draws), minlength=50) / 2000
    assert float((shares - 0.3).abs().max()) < 4.5 * (0.3 * 0.7 / 2000) ** 0.5
    assert len(poisson_draw(50, 1.0, rng)) == 50
    assert len(poisson_draw(0, 0.5, rng)) == 0


def test_one_more_image_moves_a_step_by_the_clip_norm_over_the_public_batch_at_most() -> None:
    """Opacus #571: dividing by int(n * rate) tells n, beside what the image itself moves."""
    images, labels = data(24)
    privacy = image_privacy(sample_rate=1.0, batch_size=7, noise_multiplier=0.0, clip=0.01)
    every, without = update(images, labels, privacy), update(images[:-1], labels[:-1], privacy)
    moved = float((every - without).double().norm())
    assert 0.9 * 0.01 / 7 < moved <= 0.01 / 7 + 1e-7


def test_one_more_image_does_not_change_the_noise() -> None:
    """Opacus #819: there the noise's scale in the update tells n, the clearer the larger dim."""
    images, labels = data(24)
    privacy = image_privacy(sample_rate=1e-9)
    few = update(images[:1], labels[:1], privacy)
    assert torch.equal(few, update(images, labels, privacy))


def test_a_subject_with_ever_so_many_images_moves_a_step_by_one_clip_norm() -> None:
    images, labels = data(24)
    labels = np.where(np.arange(24) < 12, 0, labels)
    privacy = SubjectPrivacy(
        sample_rate=1.0, batch_size=3, noise_multiplier=0.0, clip=0.01, images_per_subject=4
    )
    others = np.flatnonzero(labels != 0)  # at most four images of each: all of them take part
    assert np.bincount(labels[others]).max() <= 4
    every = update(images, labels, privacy)
    without = update(images[others], labels[others], privacy)
    moved = float((every - without).double().norm())
    assert 0.9 * 0.01 / 3 < moved <= 0.01 / 3 + 1e-6


def test_it_is_reproducible_and_how_many_images_are_held_at_once_does_not_matter() -> None:
    privacy = image_privacy()
    first = update(*data(), privacy, n_steps=3)
    assert torch.equal(first, update(*data(), privacy, n_steps=3))
    assert not torch.equal(first, update(*data(), privacy, n_steps=3, noise_seed=1))
    assert not torch.equal(first, update(*data(), privacy, n_steps=3, seed=1))
    small = PLAIN.model_copy(update={"batch_size": 3})
    torch.testing.assert_close(update(*data(), privacy, 3, small), first, rtol=1e-3, atol=1e-5)


def test_without_noise_it_learns() -> None:
    images, _ = data(N_PEOPLE)
    images, labels = images.repeat(4, axis=0), np.arange(N_PEOPLE).repeat(4)
    backbone, head = site()
    training = LocalTraining(batch_size=24, optimizer=SGD(learning_rate=0.1), flip=False)
    privacy = image_privacy(noise_multiplier=0.0, clip=5.0)
    losses = []
    for number in range(2):
        rngs = stream(number, "draws"), stream(number, "noise")
        steps = Steps(0.0, 0.5, 25)
        result = train_privately(backbone, head, images, labels, training, privacy, steps, *rngs)
        losses.append(result.loss)
    assert losses[1] < 0.5 * losses[0]


def canary_scores(noise: float, n_runs: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One image's trace in the update, with it and without: along its own clipped gradient."""
    images, labels = data(4)
    privacy = image_privacy(sample_rate=1.0, batch_size=1, noise_multiplier=noise, clip=0.5)
    silent = privacy.model_copy(update={"noise_multiplier": 0.0})
    without = update(images[:3], labels[:3], silent)
    trace = update(images, labels, silent) - without
    direction = trace / trace.norm()
    scores = {
        n: [
            float((update(images[:n], labels[:n], privacy, noise_seed=s) - without) @ direction)
            for s in range(n * 10_000, n * 10_000 + n_runs)
        ]
        for n in (4, 3)
    }
    return np.array(scores[4]), np.array(scores[3])


@pytest.mark.slow
def test_the_canary_audit_stays_below_the_accounted_epsilon_and_catches_too_little_noise() -> None:
    with_one, without = canary_scores(2.0, 250)
    found = audit(with_one, without, 1e-3, numpy_stream(0, "audit"))
    accounted = epsilon([Steps(2.0, 1.0, 1)], 1e-3, "gdp")
    assert found.epsilon <= accounted
    assert found.epsilon_gaussian <= accounted
    with_one, without = canary_scores(0.25, 250)  # an eighth of the promised noise
    caught = audit(with_one, without, 1e-3, numpy_stream(0, "audit"))
    assert caught.epsilon > accounted


@pytest.mark.parametrize(
    ("n", "labels", "training", "fields", "message"),
    [
        (0, True, PLAIN, {}, r"at least one image, got 0"),
        (8, False, PLAIN, {}, r"identity of each image, got none for 8"),
        (8, True, PLAIN.model_copy(update={"max_gradient_norm": 1.0}), {}, r"max_gradient_norm"),
        (8, True, PLAIN, {"delta": 0.125}, r"below 1 / 8 \(images of the site\), got 0.125"),
    ],
)
def test_impossible_settings_are_refused(
    n: int, labels: bool, training: LocalTraining, fields: dict[str, float], message: str
) -> None:
    images, people = data(n)
    given = people if labels else None
    rngs = stream(0, "a"), stream(0, "b")
    steps = Steps(1.0, 0.5, 1)
    with pytest.raises(ValueError, match=message):
        train_privately(*site(), images, given, training, image_privacy(**fields), steps, *rngs)


def test_the_unit_subject_needs_identities_and_room_for_a_subject() -> None:
    images, people = data(8)
    privacy = SubjectPrivacy(
        sample_rate=0.5, batch_size=3, noise_multiplier=1.0, delta=1e-3, images_per_subject=9
    )
    rngs = stream(0, "a"), stream(0, "b")
    steps = Steps(1.0, 0.5, 1)
    with pytest.raises(ValueError, match="unit subject needs the identity"):
        train_privately(*site(), images, None, PLAIN, privacy, steps, *rngs)
    with pytest.raises(ValueError, match=r"images_per_subject needs to be <= training.batch_size"):
        train_privately(*site(), images, people, PLAIN, privacy, steps, *rngs)
