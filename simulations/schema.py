"""The whole configuration of a run: one YAML file describes one complete run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    model_validator,
)

from fedface.aggregation import AnyAggregator, Mean
from fedface.aggregation.screening import ReplyLimits
from fedface.attacks import AnyAttack
from fedface.backbones import AnyBackbone
from fedface.config import Config, ConfigError, parse_config, read_yaml
from fedface.data import AnyFaces, AnyPairs
from fedface.data.partition import AnyPartition
from fedface.data.partition.by_identity import ByIdentity
from fedface.data.split import SplitByIdentity
from fedface.heads import AnyHead
from fedface.privacy.units import AnyPrivacy, SitePrivacy, SubjectPrivacy
from fedface.training.local import LocalTraining
from simulations.deploy.plan import Deployment
from simulations.engine import AnyEngine, FlowerEngine
from simulations.policies import SitePolicies

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Rate = Annotated[float, Field(gt=0, lt=1)]


class DataConfig(Config):
    """Which faces, how people are split, and how training images are dealt to the sites."""

    faces: AnyFaces
    split: SplitByIdentity
    partition: AnyPartition = ByIdentity()
    pairs: AnyPairs | None = None
    """A verification protocol in ten folds; pairs that show a trained person are dropped."""


class ModelConfig(Config):
    """The shared backbone and the private head."""

    backbone: AnyBackbone
    head: AnyHead
    compile: bool = False
    """Whether sites compile the backbone (torch.compile). It takes a minute when a worker starts,
    and on a CPU a C++ compiler; it pays in long runs. The last bits of the results differ."""
    start: Path | None = None
    """Folder of a complete run whose exported model the backbone starts from, such as one trained
    on rendered faces; null starts from random weights."""


class FederationConfig(Config):
    """How many sites and rounds, and what a round needs."""

    n_clients: PositiveInt
    n_rounds: PositiveInt
    clients_per_round: PositiveInt | None = None
    """Sites asked in each round, drawn by seed; null asks all."""
    min_valid_replies: PositiveInt = 2
    """With fewer valid replies a round keeps the global model, and says so."""
    max_failed_rounds: PositiveInt = 3
    """After this many such rounds in a row the run stops as failed."""
    timeout: PositiveFloat = 3600.0
    """Seconds that a round waits for replies: its deadline."""
    min_clients: PositiveInt | None = None
    """Sites that must be connected when the run starts; null needs all. Later rounds go on with
    whoever is there."""
    join_timeout: PositiveFloat = 120.0
    """Seconds that the start waits for all sites, and a later round for min_valid_replies."""
    limits: ReplyLimits = ReplyLimits()
    aggregate_on: Literal["cpu", "cuda"] = "cpu"
    """Where the server works on large sums; cuda needs a GPU and rounds otherwise."""

    @model_validator(mode="after")
    def _cohort_fits(self) -> Self:
        cohort = self.clients_per_round or self.n_clients
        if cohort > self.n_clients:
            raise ValueError(f"clients_per_round needs <= n_clients={self.n_clients}, got {cohort}")
        if self.min_clients is not None and self.min_clients > self.n_clients:
            raise ValueError(f"min_clients needs <= {self.n_clients}, got {self.min_clients}")
        if self.min_valid_replies > cohort:
            raise ValueError(
                f"min_valid_replies needs <= {cohort} clients a round, got {self.min_valid_replies}"
            )
        return self


class EvaluationConfig(Config):
    """What is measured on people whom nobody trained on."""

    every: PositiveInt = 1
    """Evaluate after every so many rounds, and always after the last."""
    false_accept_rates: tuple[Rate, ...] = Field(default=(1e-3, 1e-2), min_length=1)
    n_bootstrap: Annotated[int, Field(ge=40)] = 1000
    """Identity-bootstrap draws behind each interval; 40 is the least for 95 %."""
    local: bool = False
    """Also ask the sites for the global model's loss and accuracy under their heads."""
    reference: Path | None = None
    """Run folder of the clean run: its thresholds are the deployed ones, its model the one that
    an attack's success is compared with."""


class CompareConfig(Config):
    """Variants of this run, each a set of overrides, for every seed."""

    variants: dict[Name, dict[str, Any]] = Field(min_length=1)
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    reference: Name
    """The clean variant that the others are measured against; it runs first."""

    @model_validator(mode="after")
    def _reference_is_a_variant(self) -> Self:
        if self.reference not in self.variants:
            raise ValueError(
                f"reference needs to be one of {sorted(self.variants)}, got {self.reference!r}"
            )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds need to differ, got {self.seeds}")
        return self


class RunConfig(Config):
    """One complete run, or with ``compare`` a set of runs that differ as stated."""

    name: Name
    seed: NonNegativeInt = 0
    data: DataConfig
    model: ModelConfig
    training: LocalTraining = LocalTraining()
    federation: FederationConfig
    aggregator: AnyAggregator = Mean()
    attack: AnyAttack | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    engine: AnyEngine = FlowerEngine()
    output: Path = Path("runs")
    compare: CompareConfig | None = None
    privacy: AnyPrivacy | None = None
    """Differential privacy of the training; null promises nothing."""
    policy: SitePolicies | None = None
    """What may leave the simulated sites; null checks nothing. Real sites have a file instead."""
    deployment: Deployment | None = None
    """Who takes part where the run is submitted to real sites; a simulation does not look at it."""

    @model_validator(mode="after")
    def _as_many_sites_as_clients(self) -> Self:
        n_clients = self.federation.n_clients
        if self.deployment is not None and len(self.deployment.sites) != n_clients:
            raise ValueError(
                f"deployment.sites needs federation.n_clients={n_clients} names, "
                f"got {len(self.deployment.sites)}"
            )
        return self

    @model_validator(mode="after")
    def _policies_of_sites_that_are(self) -> Self:
        sites, n_clients = (
            () if self.policy is None else self.policy.sites,
            self.federation.n_clients,
        )
        if unknown := sorted(site for site in sites if site >= n_clients):
            raise ValueError(f"policy.sites needs ids below n_clients={n_clients}, got {unknown}")
        return self

    @model_validator(mode="after")
    def _privacy_can_be_kept(self) -> Self:
        privacy = self.privacy
        if privacy is None:
            return self
        if self.evaluation.local:
            raise ValueError(
                "privacy needs evaluation.local: false (figures on private people leave without "
                "noise), got true"
            )
        if isinstance(privacy, SitePrivacy):
            mean = isinstance(self.aggregator, Mean) and self.aggregator.weighting == "uniform"
            if privacy.noise_at == "server" and not mean:
                raise ValueError(
                    "privacy.noise_at: server needs aggregator {name: mean, weighting: uniform}, "
                    f"got {self.aggregator.name} (noise_at: site goes with every aggregator)"
                )
            return self
        if self.model.compile:
            raise ValueError(f"privacy of the unit {privacy.unit} needs model.compile: false")
        if self.training.max_gradient_norm is not None:
            raise ValueError(
                f"privacy of the unit {privacy.unit} needs training.max_gradient_norm: null "
                f"(privacy.clip bounds each unit), got {self.training.max_gradient_norm}"
            )
        most = privacy.images_per_subject if isinstance(privacy, SubjectPrivacy) else 1
        if most > self.training.batch_size:
            raise ValueError(
                "privacy.images_per_subject needs to be <= training.batch_size="
                f"{self.training.batch_size}, got {most}"
            )
        return self

    @model_validator(mode="after")
    def _attack_takes_place(self) -> Self:
        if self.attack is not None:
            self.attack.active(1, self.federation.n_rounds)
        return self

    @property
    def folder(self) -> Path:
        """Where the run's results go."""
        return self.output / self.name

    def to_yaml_dict(self) -> dict[str, Any]:
        """The resolved configuration, every default written out, as plain YAML values."""
        return self.model_dump(mode="json")


def load_run(path: Path, output: Path | None = None) -> RunConfig:
    """Returns the run described by the YAML file ``path``, all its variants checked.

    Raises:
        ConfigError: One line per problem, naming file, field, need and finding.
    """
    content = read_yaml(path)
    if output is not None:
        content = {**content, "output": str(output)}
    config = parse_config(content, RunConfig, str(path))
    if config.compare is not None:
        for name in config.compare.variants:
            expand(content, name, config.compare.seeds[0], str(path))
    return config


def variants(config: RunConfig, source: str = "config") -> list[tuple[str, int, RunConfig]]:
    """Returns (variant, seed, run) in the order to run: the reference first for each seed."""
    if config.compare is None:
        return [(config.name, config.seed, config)]
    compare = config.compare
    names = sorted(compare.variants, key=lambda name: name != compare.reference)
    content = config.to_yaml_dict()
    return [(n, s, expand(content, n, s, source)) for s in compare.seeds for n in names]


def expand(content: Mapping[str, Any], variant: str, seed: int, source: str) -> RunConfig:
    """Returns one variant of a comparison as a run of its own, in a folder below it.

    Raises:
        ConfigError: If the overrides do not give a valid run.
    """
    base = {key: value for key, value in content.items() if key != "compare"}
    overrides = content["compare"]["variants"][variant]
    if forbidden := {"name", "seed", "compare", "output"} & set(overrides):
        raise ConfigError(
            f"{source}: compare.variants.{variant}: needs fields other than "
            f"{sorted(forbidden)}, which the comparison sets itself"
        )
    merged = merge(base, overrides)
    folder = Path(base.get("output", "runs")) / str(base["name"])
    merged |= {"name": f"seed-{seed}", "seed": seed, "output": str(folder / variant)}
    reference = content["compare"]["reference"]
    if variant != reference:
        merged["evaluation"] = {
            **merged.get("evaluation", {}),
            "reference": str(folder / reference / f"seed-{seed}"),
        }
    return parse_config(merged, RunConfig, f"{source}: compare.variants.{variant}")


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``base`` with ``overrides`` laid over it, mapping by mapping.

    A mapping that names another method (another ``name``) replaces the old one whole.
    """
    merged = dict(base)
    for key, value in overrides.items():
        old = merged.get(key)
        renamed = (
            isinstance(value, Mapping)
            and isinstance(old, Mapping)
            and "name" in value
            and value["name"] != old.get("name")
        )
        if isinstance(value, Mapping) and isinstance(old, Mapping) and not renamed:
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged
