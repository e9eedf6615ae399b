"""The whole configuration of a vertical run: ``kind: vertical`` in a YAML file says that it is one.

Parties hold different views of the same people; one of them, the active party, holds the labels and
the top model, and lives at the server.
"""

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

from fedface.config import Config, ConfigError, parse_config, read_yaml
from fedface.data import AnyFaces
from fedface.privacy import EmbeddingRelease
from fedface.vertical.active import ActiveSettings
from fedface.vertical.augmentation import Augmentation
from fedface.vertical.kinds import AnyRecordViews
from fedface.vertical.passive import PassiveSettings
from fedface.vertical.pretraining import Pretraining
from simulations.engine import AnyEngine, FlowerEngine
from simulations.schema import Name, Rate, merge

Share = Annotated[float, Field(ge=0, lt=1)]
ViewName = Annotated[str, StringConstraints(min_length=1)]


class VerticalSplit(Config):
    """Which people do what; the groups have nobody in common. All others are enrolled and train."""

    test: PositiveInt
    """People for the figures on strangers."""
    calibration: PositiveInt
    """People on whom thresholds are chosen."""
    public: NonNegativeInt = 0
    """People whose pictures everybody holds: bottom models are pretrained on them."""
    enrolled_test: Share = 0.0
    """Share of each enrolled person's records that is kept from training, to recognise them by."""


class VerticalData(Config):
    """Which faces, how they become views, and who lacks what."""

    faces: AnyFaces
    views: AnyRecordViews
    split: VerticalSplit
    missing_share: Share = 0.0
    """Share of the records that each passive party lacks, drawn by seed; alignment finds the
    records that all hold."""
    public: AnyFaces | None = None
    """Another set of faces that everybody holds, to pretrain on; or data.split.public takes people
    of ``faces``."""

    @model_validator(mode="after")
    def _one_public_set(self) -> Self:
        if self.public is not None and self.split.public:
            raise ValueError(
                "public faces come from data.public or data.split.public, not both, "
                f"got data.split.public={self.split.public}"
            )
        return self

    @property
    def has_public(self) -> bool:
        """Whether there are public people."""
        return self.public is not None or self.split.public >= 2


class Parties(Config):
    """Who sees what. The labels are with the active party."""

    active: ViewName | None = None
    """The view that the active party has of its own, or null for labels alone."""
    passive: tuple[ViewName, ...] = ()
    """The views of the passive parties, one each; empty is the active party alone."""

    @model_validator(mode="after")
    def _views_differ(self) -> Self:
        named = [*self.passive, *([self.active] if self.active else [])]
        if not named or len(set(named)) < len(named):
            raise ValueError(f"parties need one view each, no two the same, got {named}")
        return self


class VerticalTraining(Config):
    """The mini-batch loop over the aligned training records."""

    n_rounds: NonNegativeInt = 10
    """Epochs in which every training record is released once and gradients go back."""
    final_epochs: NonNegativeInt = 0
    """Epochs of the active party alone afterwards, on embeddings of the training records that it
    keeps: they are free, but for the release that ``final_release`` says."""
    final_release: bool = True
    """Whether these epochs see one more release of every training record, by the bottom models as
    they are in the end; else those of the last round, which cost nothing more."""
    batch_size: PositiveInt = 64
    steps_per_message: PositiveInt = 1
    """Mini-batches whose embeddings travel in one message. The active party steps on each; the
    bottom models take one step for all, along the sum of the gradients."""
    present: Literal["together", "each_alone"] = "together"
    """Whether a step sees the embeddings of all parties, or of each party in turn with the others
    missing: the joint embedding of one view alone then means something (matching across views)."""
    augmentation: Augmentation = Augmentation()
    pretraining: Pretraining | None = None
    """Of the bottom models on the public people, each party by itself; null starts anew."""

    @model_validator(mode="after")
    def _trains(self) -> Self:
        if self.total_rounds < 1:
            raise ValueError("training needs n_rounds + final_epochs >= 1, got 0")
        if not self.final_release and self.n_rounds == 0:
            raise ValueError("training.final_release=false needs n_rounds >= 1, got 0")
        return self

    @property
    def total_rounds(self) -> int:
        """All rounds, those of the active party alone included."""
        return self.n_rounds + self.final_epochs

    @property
    def releases(self) -> int:
        """How often a training record is released over the run."""
        return self.n_rounds + (1 if self.final_epochs and self.final_release else 0)


class VerticalFederation(Config):
    """What the server waits for, and who drops out."""

    timeout: PositiveFloat = 3600.0
    """Seconds that a step waits for the parties; who is silent is missing for the round."""
    drop_out: Share = 0.0
    """How likely a passive party is to be away for a whole round, drawn by seed."""
    max_failed_rounds: PositiveInt = 3
    """After this many rounds in a row without any valid embedding the run stops as failed."""


class Matching(Config):
    """Verification and identification across views: enrolled by one, searched by another."""

    gallery: ViewName
    probe: ViewName

    @model_validator(mode="after")
    def _two(self) -> Self:
        if self.gallery == self.probe:
            raise ValueError(f"matching needs two views, got {self.gallery} twice")
        return self


class VerticalEvaluation(Config):
    """What is measured, on people whom nobody trained on and on kept records of the enrolled."""

    every: PositiveInt | None = None
    """Evaluate after every so many rounds, and always after the last; null only then. A record is
    released anew for it when bottom models have changed."""
    false_accept_rates: tuple[Rate, ...] = Field(default=(1e-2, 1e-1), min_length=1)
    n_bootstrap: Annotated[int, Field(ge=40)] = 1000
    """Identity-bootstrap draws behind each interval; 40 is the least for 95 %."""
    matching: Matching | None = None
    """Null compares joint embeddings of whole records."""


class VerticalCompare(Config):
    """Variants of this run, each a set of overrides, for every seed."""

    variants: dict[Name, dict[str, Any]] = Field(min_length=1)
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)

    @model_validator(mode="after")
    def _seeds_differ(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds need to differ, got {self.seeds}")
        return self


class VerticalConfig(Config):
    """One complete vertical run, or with ``compare`` a set of runs that differ as stated."""

    kind: Literal["vertical"]
    name: Name
    seed: NonNegativeInt = 0
    data: VerticalData
    parties: Parties
    passive: PassiveSettings
    """What each passive party computes and how it shares it; all alike."""
    active: ActiveSettings = ActiveSettings()
    training: VerticalTraining = VerticalTraining()
    federation: VerticalFederation = VerticalFederation()
    evaluation: VerticalEvaluation = VerticalEvaluation()
    engine: AnyEngine = FlowerEngine()
    output: Path = Path("runs")
    compare: VerticalCompare | None = None

    @model_validator(mode="after")
    def _parties_fit(self) -> Self:
        known = self.data.views.views
        own = self.parties.active
        for view in (*self.parties.passive, *([own] if own else [])):
            if view not in known:
                raise ValueError(f"parties need views of {known}, got {view!r}")
        if (own is None) != (self.active.backbone is None):
            raise ValueError(
                "active.backbone is needed exactly when parties.active names a view, "
                f"got parties.active={own}, active.backbone={self.active.backbone}"
            )
        if self.training.pretraining is not None and not self.data.has_public:
            raise ValueError(
                "training.pretraining needs data.public or data.split.public >= 2, "
                f"got {self.data.split.public}"
            )
        if self.training.pretraining is None and self.training.n_rounds == 0 and self._n_passive:
            raise ValueError(
                "training.n_rounds=0 leaves bottom models as they are drawn: it needs "
                "training.pretraining, got none"
            )
        return self

    @model_validator(mode="after")
    def _views_alone_fit(self) -> Self:
        matching, passive = self.evaluation.matching, self.parties.passive
        if matching is not None and not {matching.gallery, matching.probe} <= set(passive):
            raise ValueError(
                f"evaluation.matching needs two of the passive parties' views {passive}, "
                f"got {matching.gallery!r} and {matching.probe!r}"
            )
        alone = self.training.present == "each_alone"
        if (alone or matching is not None) and self.parties.active is not None:
            raise ValueError(
                "training.present=each_alone and evaluation.matching need parties.active=null, "
                f"got {self.parties.active!r}"
            )
        return self

    @model_validator(mode="after")
    def _budget_suffices(self) -> Self:
        release = self.passive.release
        if not self._n_passive or not isinstance(release, EmbeddingRelease):
            return self
        if release.n_parties != self._n_passive:
            raise ValueError(
                f"passive.release.n_parties needs to be the number of passive parties, "
                f"{self._n_passive}, got {release.n_parties}"
            )
        needed = max(self.training.releases, self._n_evaluations)
        if release.n_releases < needed:
            raise ValueError(
                f"passive.release.n_releases needs >= {needed} (training.n_rounds, one more with "
                f"training.final_release; evaluations of test records), got {release.n_releases}"
            )
        return self

    @property
    def _n_passive(self) -> int:
        return len(self.parties.passive)

    @property
    def _n_evaluations(self) -> int:
        """Evaluations with bottom models that are new: what a test record is released for."""
        rounds, every = self.training.n_rounds, self.evaluation.every
        total = self.training.total_rounds
        measured = {r for r in range(1, total + 1) if r == total or (every and r % every == 0)}
        return len({min(r, rounds) for r in measured})

    @property
    def folder(self) -> Path:
        """Where the run's results go."""
        return self.output / self.name

    def to_yaml_dict(self) -> dict[str, Any]:
        """The resolved configuration, every default written out, as plain YAML values."""
        return self.model_dump(mode="json")


def is_vertical(content: Mapping[str, Any]) -> bool:
    """Returns whether a YAML file's content describes a vertical run."""
    return content.get("kind") == "vertical"


def load_vertical(path: Path, output: Path | None = None) -> VerticalConfig:
    """Returns the vertical run described by the YAML file ``path``, all its variants checked.

    Raises:
        ConfigError: One line per problem, naming file, field, need and finding.
    """
    content = read_yaml(path)
    if output is not None:
        content = {**content, "output": str(output)}
    config = parse_config(content, VerticalConfig, str(path))
    vertical_variants(config, str(path))
    return config


def vertical_variants(
    config: VerticalConfig, source: str = "config"
) -> list[tuple[str, int, VerticalConfig]]:
    """Returns (variant, seed, run) in the order to run: seed by seed, variants as they stand.

    Raises:
        ConfigError: If the overrides of a variant do not give a valid run.
    """
    if config.compare is None:
        return [(config.name, config.seed, config)]
    content = config.to_yaml_dict()
    compare = content.pop("compare")
    runs = []
    for seed in config.compare.seeds:
        for name, overrides in compare["variants"].items():
            where = f"{source}: compare.variants.{name}"
            if forbidden := {"kind", "name", "seed", "compare", "output"} & set(overrides):
                raise ConfigError(
                    f"{where}: needs fields other than {sorted(forbidden)}, which the comparison "
                    "sets itself"
                )
            merged = merge(content, overrides)
            folder = str(config.folder / name)
            merged |= {"name": f"seed-{seed}", "seed": seed, "output": folder}
            runs.append((name, seed, parse_config(merged, VerticalConfig, where)))
    return runs
