"""The settings: what has to be given, what excludes what, and what follows from them."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from fedface.privacy.accounting import Steps, epsilon
from fedface.privacy.units import AnyPrivacy, ImagePrivacy, SitePrivacy, SubjectPrivacy

ADAPTER: TypeAdapter[Any] = TypeAdapter(AnyPrivacy)
IMAGE = {"unit": "image", "sample_rate": 0.1, "batch_size": 20}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (IMAGE, "target_epsilon, noise_multiplier or both, got neither"),
        ({**IMAGE, "target_epsilon": 1.0, "noise_multiplier": 0}, "noise_multiplier > 0"),
        ({**IMAGE, "target_epsilon": 0.0}, "greater than 0"),
        ({**IMAGE, "noise_multiplier": 1, "sample_rate": 0}, "greater than 0"),
        ({**IMAGE, "noise_multiplier": 1, "sample_rate": 1.5}, "less than or equal to 1"),
        ({**IMAGE, "noise_multiplier": 1, "delta": 1.0}, "less than 1"),
        ({**IMAGE, "noise_multiplier": 1, "accountant": "gdp"}, "needs sample_rate 1, got 0.1"),
        ({**IMAGE, "noise_multiplier": 1, "images_per_subject": 2}, "not permitted"),
        ({"unit": "person", "noise_multiplier": 1}, "image.*subject.*site"),
        ({"unit": "site", "noise_multiplier": 1, "sample_rate": 0.5}, "not permitted"),
    ],
)
def test_what_is_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ADAPTER.validate_python(content)


def test_the_noise_that_a_target_chooses_pays_for_exactly_the_rounds_of_the_run() -> None:
    privacy = ImagePrivacy(target_epsilon=4.0, sample_rate=0.1, batch_size=20, accountant="rdp")
    steps = privacy.cost(n_rounds=6, epochs=1)
    assert steps[1:] == (0.1, 10)
    assert epsilon([steps] * 6, 1e-5, "rdp") <= 4.0 < epsilon([steps] * 7, 1e-5, "rdp")


def test_a_given_noise_is_taken() -> None:
    privacy = SubjectPrivacy(noise_multiplier=1.3, sample_rate=0.3, batch_size=4, n_steps=2)
    assert privacy.cost(6, 5) == Steps(1.3, 0.3, 2)
    assert SitePrivacy(noise_multiplier=0.7).cost(6, 5) == Steps(0.7, 1.0, 1)


def test_delta_must_not_publish_a_unit() -> None:
    privacy = SitePrivacy(noise_multiplier=1, delta=0.01)
    privacy.check_delta(99, "sites")
    with pytest.raises(ValueError, match=r"privacy\.delta needs to be below 1 / 100 \(sites\)"):
        privacy.check_delta(100, "sites")


def test_randomness_is_of_the_run_or_of_nobody() -> None:
    run = SitePrivacy(noise_multiplier=1)
    assert run.generator(0, "a").initial_seed() == run.generator(0, "a").initial_seed()
    secret = SitePrivacy(noise_multiplier=1, randomness="secret")
    assert secret.generator(0, "a").initial_seed() != secret.generator(0, "a").initial_seed()


def test_every_unit_says_how_it_samples_and_whom_to_trust() -> None:
    assert "0.1" in ADAPTER.validate_python({**IMAGE, "noise_multiplier": 1}).sampling
    assert "server" in SitePrivacy(noise_multiplier=1, noise_at="server").trust
    assert SitePrivacy(noise_multiplier=1).trust.startswith("nobody")
