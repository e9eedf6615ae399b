"""What may leave a site: the policy that its data protection officer writes and owns.

The file is TOML or YAML. It names every tensor that may leave, with its shape; heads, prototypes,
batch statistics and whatever else is not named stay inside. Beside that it bounds the length of an
update, the bytes that go out, the runs and apps that are answered, and may demand differential
privacy within a budget. Nothing here is taken from the server or from the app.

What a policy cannot do: tell what numbers mean. An app that hides a face template in the values of
an allowed tensor passes; ``apps`` (code that the site has read), ``max_norm`` and noise are the
means against that. See docs/site_policy.md.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)

from fedface.config import Config, ConfigError, parse_config, read_yaml

TensorName = Annotated[
    str, StringConstraints(strict=True, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}$")
]
MetricName = Annotated[str, StringConstraints(strict=True, pattern=r"^[a-z0-9][a-z0-9_.\-]{0,63}$")]
Digest = Annotated[str, StringConstraints(strict=True, pattern=r"^[0-9a-f]{64}$")]
Length = Annotated[int, Field(strict=True, ge=0, le=2**40)]


def _ordered(value: object) -> object:
    """Refuses sets, whose order means nothing."""
    if not isinstance(value, list | tuple):
        raise ValueError("Input should be a list")
    return value


Shape = Annotated[tuple[Length, ...], Field(max_length=8), BeforeValidator(_ordered)]
Shapes = dict[TensorName, Shape]
Tensors = Annotated[
    Annotated[Shapes, Tag("shapes")] | Annotated[Literal["backbone"], Tag("name")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "shapes"),
]
"""Names with shapes, or ``backbone``."""
Count = Annotated[int, Field(strict=True, ge=1, le=2**63 - 1)]
Positive = Annotated[float, Field(strict=True, gt=0)]

METRICS: tuple[MetricName, ...] = (
    "accuracy",
    "delta",
    "epsilon",
    "loss",
    "num-examples",
    "num-steps",
    "partition-id",
)
"""The single numbers that honest replies carry beside their tensors."""

MAX_NUMBERS = 2**40
"""No policy allows more numbers in one tensor: beyond it is a slip of the pen."""


class PrivacyDemand(Config):
    """Differential privacy that every training reply must state, and what it may cost here.

    Attributes:
        max_epsilon: The budget: the epsilons of all runs that this site took part in add up to no
            more (basic composition; each run states what it has spent so far).
        max_delta: The same for delta.
        stated_for: What a statement covers: the one ``run``, or everything that the ``site``'s
            account holds (a ledger that its runs share); those are not added up.
    """

    max_epsilon: Positive
    max_delta: Annotated[float, Field(strict=True, gt=0, lt=1)]
    stated_for: Literal["run", "site"] = "run"


class ByteBudget(Config):
    """Bytes that may leave: values, names and error texts; None sets no limit."""

    per_reply: Count | None = None
    per_run: Count | None = None
    in_all: Count | None = None


class SitePolicy(Config):
    """What may leave one site.

    Attributes:
        version: The version of this format.
        weights: Tensors of the update, name -> shape; ``backbone`` stands for the parameters of
            the backbone that the run's configuration describes (in simulation; a real site's file
            names them, and ``fedface site policy`` writes the list).
        buffers: Batch statistics and counters, name -> shape; none may leave unless named.
        metrics: Names of the single numbers that may leave.
        messages: Kinds of messages that are answered.
        max_norm: Largest Euclidean length of an update, None for any.
        privacy: Differential privacy that is demanded, None for none.
        runs: SHA-256 of the runs that are answered (``fedface site policy`` prints it), None for
            any.
        apps: SHA-256 of the Flower app bundles (FAB) that are answered, None for any; a simulation
            has none, so it needs None.
        byte_budget: The bytes that may leave.
        max_replies_per_run: Training replies of one run, None for any number.
        error_characters: How much of an app's own error text may leave; by default none, since
            the app writes it. The site's log has it all.
    """

    version: Annotated[int, Field(strict=True, ge=1, le=1)] = 1
    weights: Tensors = "backbone"
    buffers: Tensors = Field(default_factory=dict)
    metrics: Annotated[tuple[MetricName, ...], BeforeValidator(_ordered)] = METRICS
    messages: tuple[Literal["query", "train", "evaluate"], ...] = ("query", "train", "evaluate")
    max_norm: Positive | None = None
    privacy: PrivacyDemand | None = None
    runs: tuple[Digest, ...] | None = None
    apps: tuple[Digest, ...] | None = None
    byte_budget: ByteBudget = ByteBudget()
    max_replies_per_run: Count | None = None
    error_characters: Annotated[int, Field(strict=True, ge=0, le=1000)] = 0

    @model_validator(mode="after")
    def _is_meant(self) -> Self:
        for field in ("weights", "buffers"):
            shapes = getattr(self, field)
            for name, shape in {} if shapes == "backbone" else shapes.items():
                if prod(shape) > MAX_NUMBERS:
                    raise ValueError(f"{field}.{name} needs <= 2^40 numbers, got shape {shape}")
        for field in ("metrics", "messages", "runs", "apps"):
            values = getattr(self, field) or ()
            if len(set(values)) != len(values):
                raise ValueError(f"{field} needs entries that differ, got one twice")
        if self.privacy is not None and (lacking := {"epsilon", "delta"} - set(self.metrics)):
            raise ValueError(
                f"privacy needs the metrics epsilon and delta to leave, metrics lacks "
                f"{', '.join(sorted(lacking))}"
            )
        return self

    @property
    def explicit(self) -> bool:
        """Whether every tensor is named, so that nobody has to build the backbone."""
        return "backbone" not in (self.weights, self.buffers)

    def named(self, weights: Mapping[str, Shape], buffers: Mapping[str, Shape]) -> "SitePolicy":
        """Returns the policy with ``backbone`` replaced by these names and shapes."""
        update: dict[str, object] = {}
        if self.weights == "backbone":
            update["weights"] = dict(weights)
        if self.buffers == "backbone":
            update["buffers"] = dict(buffers)
        return self.model_validate({**self.model_dump(), **update}) if update else self

    @property
    def digest(self) -> str:
        """SHA-256 of the policy's meaning: formatting and order of the file do not matter."""
        return sha256_of(self.model_dump(mode="json"))


def sha256_of(value: object) -> str:
    """Returns the SHA-256 of plain JSON values, written one way only.

    Raises:
        TypeError: If JSON cannot carry ``value``.
        ValueError: If it holds NaN or infinity.
    """
    return hashlib.sha256(canonical(value)).hexdigest()


def canonical(value: object) -> bytes:
    """Returns ``value`` as JSON in ASCII with sorted keys and no spaces; errors as sha256_of."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def load_policy(path: Path) -> SitePolicy:
    """Returns the policy in the file ``path`` (``.toml``, ``.yaml`` or ``.yml``).

    Raises:
        ConfigError: If it is no such file, or anything in it is not as it should be; one line per
            problem, each naming the file, the field and what was found.
    """
    if path.suffix == ".toml":
        try:
            return parse_toml(path.read_text(encoding="utf-8"), str(path))
        except OSError as error:
            raise ConfigError(f"{path}: needed a readable file, found: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: needed UTF-8 text, found other bytes") from None
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{path}: needed a policy in .toml, .yaml or .yml, found another ending")
    try:
        return parse_config(read_yaml(path), SitePolicy, str(path))
    except RecursionError:
        raise ConfigError(f"{path}: needed a policy, found values nested too deep") from None


def parse_toml(text: str, source: str) -> SitePolicy:
    """Returns the policy that ``text`` describes; ``source`` stands first in each error line.

    Raises:
        ConfigError: As :func:`load_policy`.
    """
    try:
        content = tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{source}: needed a policy, found values nested too deep") from None
    except ValueError as error:  # tomllib's own, and integers of thousands of digits
        raise ConfigError(f"{source}: needed TOML, found: {' '.join(str(error).split())}") from None
    return parse_config(content, SitePolicy, source)
