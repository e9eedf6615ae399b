"""A site's own people: read, counted, and tried out with one training step."""

from dataclasses import dataclass
from math import isfinite
from time import monotonic

import numpy as np

from fedface.attacks import AnyAttack
from fedface.backbones.small_conv import SmallConv
from fedface.config import Config, ConfigError, parse_config
from fedface.data import AnyFaces
from fedface.data.faces import Faces
from fedface.heads import CosFace
from fedface.random import stream
from fedface.training.local import LocalTraining, train_locally
from simulations.build import device_of_worker
from simulations.deploy.settings import SiteSettings
from simulations.schema import RunConfig


class _Typed(Config):
    faces: AnyFaces
    red_team: AnyAttack | None


def faces_of(settings: SiteSettings) -> AnyFaces:
    """Returns what loads the site's faces.

    Raises:
        ConfigError: If ``faces`` in ``site.toml`` names no loader or lacks something.
    """
    return _typed(settings).faces


def red_team_of(settings: SiteSettings) -> AnyAttack | None:
    """Returns the attack that the site plays in a drill, or None.

    Raises:
        ConfigError: If ``red_team`` in ``site.toml`` is no attack.
    """
    return _typed(settings).red_team


def _typed(settings: SiteSettings) -> _Typed:
    content = {"faces": settings.faces, "red_team": settings.red_team}
    return parse_config(content, _Typed, "site.toml")


@dataclass(frozen=True)
class DataCheck:
    """What a look at a site's faces found.

    Attributes:
        n_people: People with at least one image.
        n_images: Images of them all.
        fewest: Images of the person who has the fewest.
        most: Images of the person who has the most.
        size: Height and width in pixels.
        skipped: What was left out, and why.
    """

    n_people: int
    n_images: int
    fewest: int
    most: int
    size: int
    skipped: tuple[str, ...]


def check_data(faces: Faces) -> DataCheck:
    """Returns what there is to train on.

    Raises:
        ConfigError: If there are fewer than two people: a head cannot tell one from nobody.
    """
    counts = np.bincount(faces.identities)
    if len(counts) < 2:
        raise ConfigError(f"faces: needed two people at least, found {len(counts)}")
    return DataCheck(
        len(counts),
        len(faces),
        int(counts.min()),
        int(counts.max()),
        int(faces.images.shape[1]),
        tuple(f"{skip.what}: {skip.why}" for skip in faces.skipped),
    )


def dry_step(faces: Faces, config: RunConfig | None, n_images: int = 64) -> tuple[float, float]:
    """Trains one epoch on the first ``n_images`` images and throws the result away.

    Args:
        faces: The site's people.
        config: The run to try; None takes a small network.
        n_images: At most so many images.

    Returns:
        The mean loss and the seconds it took.

    Raises:
        ValueError: If the network cannot read the images, or its loss is not finite.
    """
    few = faces.select(np.arange(min(n_images, len(faces)), dtype=np.int64))
    backbone_config = SmallConv() if config is None else config.model.backbone
    head_config = CosFace() if config is None else config.model.head
    training = LocalTraining() if config is None else config.training
    device = device_of_worker()
    rng = stream(0, "dry step")
    backbone = backbone_config.build(few.images.shape[1], rng).to(device)
    head = head_config.build(backbone_config.embedding_size, few.n_identities, rng).to(device)
    started = monotonic()
    once = training.model_copy(update={"epochs": 1})
    result = train_locally(backbone, head, few.images, few.identities, once, rng)
    if not isfinite(result.loss):
        raise ValueError(f"dry step needs a finite loss, got {result.loss}")
    return result.loss, monotonic() - started
