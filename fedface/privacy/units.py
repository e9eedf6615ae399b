"""Whose presence is hidden: differential privacy for an image, a subject or a whole site.

An epsilon means nothing without its unit, so the unit is the name of the method. The rules of
``image`` and ``subject`` act inside each site's training (DP-SGD, nobody but the site is trusted);
``site`` hides a site's whole contribution, by noise at the site or at a trusted server.

Neighbouring data differ in the presence of one unit (add or remove one); what stays the same, and
is therefore public: the number of sites, the rows of each private head, the sampling rate, the
number of steps and ``batch_size``, the constant that sums are divided by.
"""

import math
import secrets
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from fedface.config import Config
from fedface.privacy.accounting import Accountant, Steps, noise_for
from fedface.privacy.clipping import ClipNorm
from fedface.random import stream

Unit = Literal["image", "subject", "site"]


class Guarantee(Config):
    """What every unit has.

    Attributes:
        target_epsilon: The budget of a site for the whole run: nothing is released that would go
            beyond it. None sets no limit.
        noise_multiplier: z, the noise's standard deviation over the clip norm. None chooses it so
            that ``federation.n_rounds`` rounds cost ``target_epsilon``. 0 clips without noise: no
            privacy (epsilon is infinite), for comparisons.
        delta: At which epsilon is stated; below 1 / number of units at any site.
        clip: C, the largest Euclidean length of one unit's gradient (of a site's update).
        accountant: See :mod:`fedface.privacy.accounting`.
        randomness: ``run`` draws sampling and noise from the run's seed, which all parties know:
            simulations only. ``secret`` draws them from the operating system and keeps them.
        ledger: Folder of the sites' accounts, which then add up over all runs that name it. None
            keeps each account in the run folder: every run counts by itself.
    """

    target_epsilon: PositiveFloat | None = None
    noise_multiplier: NonNegativeFloat | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    clip: ClipNorm = 1.0
    accountant: Accountant = "prv"
    randomness: Literal["run", "secret"] = "run"
    ledger: Path | None = None

    @model_validator(mode="after")
    def _something_is_promised(self) -> Self:
        if self.target_epsilon is None and self.noise_multiplier is None:
            raise ValueError("privacy needs target_epsilon, noise_multiplier or both, got neither")
        if self.target_epsilon is not None and self.noise_multiplier == 0:
            raise ValueError(
                "privacy needs noise_multiplier > 0 for a target_epsilon, "
                f"got 0 and {self.target_epsilon}"
            )
        return self

    def round_steps(self, epochs: int) -> Steps:
        """Returns one round's steps, with a noise multiplier of 1."""
        raise NotImplementedError

    def noise(self, n_rounds: int, epochs: int) -> float:
        """Returns the noise multiplier of a run of ``n_rounds``."""
        if self.noise_multiplier is not None:
            return self.noise_multiplier
        _, rate, n_steps = self.round_steps(epochs)
        target = math.inf if self.target_epsilon is None else self.target_epsilon
        return noise_for(target, self.delta, rate, n_steps * n_rounds, self.accountant)

    def cost(self, n_rounds: int, epochs: int) -> Steps:
        """Returns the steps of one round of a run of ``n_rounds``."""
        _, rate, n_steps = self.round_steps(epochs)
        return Steps(self.noise(n_rounds, epochs), rate, n_steps)

    def check_delta(self, n_units: int, unit: str) -> None:
        """Checks that delta does not allow to publish a unit outright.

        Raises:
            ValueError: If delta >= 1 / n_units.
        """
        if self.delta * n_units >= 1:
            raise ValueError(
                f"privacy.delta needs to be below 1 / {n_units} ({unit}), got {self.delta:g}"
            )

    def generator(self, seed: int, *purpose: int | str) -> torch.Generator:
        """Returns the generator for ``purpose``: of the run's seed, or of the system's entropy."""
        if self.randomness == "run":
            return stream(seed, *purpose)
        return torch.Generator().manual_seed(secrets.randbits(63))


class _ByExample(Guarantee):
    """DP-SGD inside each site.

    Attributes:
        sample_rate: q, the chance of each unit to take part in a step, drawn on its own
            (Poisson). The same at all sites: it is public, and no function of a site's size.
        batch_size: B, the public constant that every noised sum is divided by: about q times the
            units of a typical site. ``training.batch_size`` is how many images are held at once.
        n_steps: Steps per round, None for ceil(training.epochs / sample_rate).
    """

    sample_rate: Annotated[float, Field(gt=0, le=1)]
    batch_size: PositiveInt
    n_steps: PositiveInt | None = None

    @model_validator(mode="after")
    def _accountant_fits(self) -> Self:
        if self.accountant == "gdp" and self.sample_rate < 1:
            raise ValueError(
                f"accountant gdp needs sample_rate 1, got {self.sample_rate}; use prv or rdp"
            )
        return self

    def round_steps(self, epochs: int) -> Steps:
        """Returns one round's steps, with a noise multiplier of 1."""
        return Steps(1.0, self.sample_rate, self.n_steps or math.ceil(epochs / self.sample_rate))

    @property
    def sampling(self) -> str:
        """How units are drawn, in words."""
        return f"Poisson, rate {self.sample_rate:g} a step"

    @property
    def trust(self) -> str:
        """Who has to be trusted, in words."""
        return "nobody but the site itself: noise is added in its own training"


class ImagePrivacy(_ByExample):
    """Hides the presence of one image; a person with k images has up to k times the epsilon."""

    unit: Literal["image"] = "image"


class SubjectPrivacy(_ByExample):
    """Hides the presence of a person with all images at a site: subjects are drawn and clipped.

    Attributes:
        images_per_subject: At most so many of a drawn subject's images take part in a step, drawn
            at random; their mean gradient is clipped once.
    """

    unit: Literal["subject"] = "subject"
    images_per_subject: PositiveInt = 4


class SitePrivacy(Guarantee):
    """Hides whether a site took part at all: its whole update is clipped and gets noise.

    Attributes:
        noise_at: ``site``: each site adds N(0, (z C)^2) to its own clipped update, so any
            aggregator is post-processing. ``server``: a trusted server clips, sums and adds the
            noise once; only for the aggregator ``mean`` with uniform weights, because no other
            rule bounds what one site can move.
        accountant: ``gdp`` is exact: every site takes part with certainty, no amplification by
            the choice of a cohort is claimed.
    """

    unit: Literal["site"] = "site"
    noise_at: Literal["site", "server"] = "site"
    accountant: Accountant = "gdp"

    def round_steps(self, epochs: int) -> Steps:
        """Returns one round's step, with a noise multiplier of 1."""
        return Steps(1.0, 1.0, 1)

    @property
    def sampling(self) -> str:
        """How units are drawn, in words."""
        return "none: each participation counts in full"

    @property
    def trust(self) -> str:
        """Who has to be trusted, in words."""
        if self.noise_at == "site":
            return "nobody but the site itself: it adds the noise to its update"
        return "the server: it sees the sites' plain updates and adds the noise"


AnyPrivacy = Annotated[ImagePrivacy | SubjectPrivacy | SitePrivacy, Field(discriminator="unit")]
"""Every unit of privacy that a YAML file can name under ``privacy:``."""
