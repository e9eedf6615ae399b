"""The sections of a vertical run's configuration: data, parties, training, evaluation."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    model_validator,
)

from fedface.config import Config
from fedface.data import AnyFaces, RenderedFaces
from fedface.data.attributes import AnyAttributes, RenderedAttributes
from fedface.vertical.active import ActiveSettings
from fedface.vertical.augmentation import Augmentation
from fedface.vertical.kinds import AnyRecordViews, Kinds
from fedface.vertical.pretraining import Pretraining
from simulations.schema import Name, Rate

Share = Annotated[float, Field(ge=0, lt=1)]
ATTRIBUTES = "attributes"
"""The name of the view that is no picture."""

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
    attributes: AnyAttributes | None = None
    """A view of another kind, named ``attributes``, for a passive party that holds no pictures."""
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

    @model_validator(mode="after")
    def _attributes_fit(self) -> Self:
        if self.attributes is None:
            return self
        if isinstance(self.views, Kinds):
            raise ValueError(
                "data.attributes needs data.views that cut each record from one picture, got kinds"
            )
        for name, faces in (("faces", self.faces), ("public", self.public)):
            rendered = isinstance(faces, RenderedFaces | None)
            if isinstance(self.attributes, RenderedAttributes) and not rendered:
                raise ValueError(
                    f"data.attributes.name=renderer needs data.{name}.name=renderer, "
                    f"got {getattr(faces, 'name', None)}"
                )
        return self

    @property
    def view_names(self) -> tuple[str, ...]:
        """Every view that a party may have."""
        more = () if self.attributes is None else (ATTRIBUTES,)
        return (*self.views.views, *more)

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


class Active(ActiveSettings):
    """What the active party computes, and where it is."""

    at: Literal["server", "client"] = "server"
    """``server``: the Flower server holds labels, own view and top model. ``client``: a client of
    its own does, and the server only relays embeddings and gradients; same numbers."""


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
