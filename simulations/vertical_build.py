"""From a vertical configuration to what a run works with: records, views, parties and ids."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from clients.vertical import VerticalClient
from clients.vertical_state import PartyState
from fedface.data.attributes import record_ids
from fedface.data.faces import Faces, Skip
from fedface.data.split import SplitByIdentity, require_disjoint, split_by_identity
from fedface.data.tensors import to_float
from fedface.privacy import AnyRelease
from fedface.random import numpy_stream, stream
from fedface.vertical.active import ActiveParty
from fedface.vertical.alignment import hashed
from fedface.vertical.channel import Channel
from fedface.vertical.pretraining import pretrain_backbone
from simulations.vertical_schema import VerticalConfig
from simulations.vertical_sections import ATTRIBUTES
from simulations.vertical_views import Group, Views, attributes_of, cut, views_used

TRAIN, ENROLLED_TEST, CALIBRATION, TEST = range(4)
"""The groups of records."""


@dataclass(frozen=True)
class VerticalRecords:
    """Every record that the parties may align, and the public people apart.

    Attributes:
        ids: ``(n,)`` the records' names, which the parties have in common and never send.
        views: See :data:`Views`.
        identities: ``(n,)`` int64 whom each shows, counted within its group of people.
        groups: ``(n,)`` int64, which of the groups each belongs to.
        n_enrolled: People who train.
        public: What everybody holds, or None.
        skipped: What the loader left out, and why.
    """

    ids: tuple[str, ...]
    views: Views
    identities: NDArray[np.int64]
    groups: NDArray[np.int64]
    n_enrolled: int
    public: Group | None
    skipped: tuple[Skip, ...] = field(default=())

    def __len__(self) -> int:
        """The number of records."""
        return len(self.ids)

    @cached_property
    def image_size(self) -> int:
        """The side of the square views in pixels; 0 without any picture.

        Raises:
            ValueError: If views differ or are not square.
        """
        shapes = {name: v.shape[1:3] for name, v in self.views.items() if v.ndim == 4}
        if not shapes:
            return 0
        if len({*shapes.values()}) != 1 or len(set(next(iter(shapes.values())))) != 1:
            raise ValueError(f"data.views.size needs to make all views one square, got {shapes}")
        return int(next(iter(shapes.values()))[0])


def build_records(config: VerticalConfig) -> VerticalRecords:
    """Loads the faces of ``config``, splits people into groups and cuts records into views.

    Raises:
        ValueError: If files are missing or the split is impossible; the message names the field.
    """
    faces, wanted = config.data.faces.load(), config.data.split
    split = split_by_identity(
        faces,
        SplitByIdentity(test=wanted.test, calibration=wanted.calibration),
        numpy_stream(config.seed, "split"),
    )
    enrolled, public = _public_apart(config, split.train)
    known = attributes_of(config, faces)
    groups = [cut(config, part, known) for part in (enrolled, split.calibration, split.test)]
    kept = _kept_for_test(config, groups[0])
    numbers = [np.where(kept, ENROLLED_TEST, TRAIN)]
    numbers += [
        np.full(len(group.identities), number)
        for group, number in zip(groups[1:], (CALIBRATION, TEST), strict=True)
    ]
    used = views_used(config)
    records = VerticalRecords(
        ids=tuple(name for group in groups for name in record_ids(group.identities, group.names)),
        views={view: np.concatenate([g.views[view] for g in groups]) for view in used},
        identities=np.concatenate([g.identities for g in groups]),
        groups=np.concatenate(numbers).astype(np.int64),
        n_enrolled=enrolled.n_identities,
        public=None if public is None else cut(config, public, known),
        skipped=faces.skipped,
    )
    _check(config, records)
    return records


def _public_apart(config: VerticalConfig, train: Faces) -> tuple[Faces, Faces | None]:
    """The enrolled and the public people."""
    n_public = config.data.split.public
    if config.data.public is not None:
        public = config.data.public.load()
        require_disjoint({"data.faces": train.names, "data.public": public.names})
        return train, public
    if not n_public:
        return train, None
    if train.n_identities < n_public + 2:
        raise ValueError(
            f"data.split leaves {train.n_identities} people to enrol and train, "
            f"data.split.public={n_public} needs two more than it takes"
        )
    order = numpy_stream(config.seed, "public people").permutation(train.n_identities)
    chosen = np.isin(train.identities, order[:n_public])
    return train.select(np.flatnonzero(~chosen)), train.select(np.flatnonzero(chosen))


def _kept_for_test(config: VerticalConfig, enrolled: Group) -> NDArray[np.bool_]:
    """Which records of the enrolled are not trained on; everybody keeps one to train on."""
    kept = np.zeros(len(enrolled.identities), dtype=bool)
    rng = numpy_stream(config.seed, "kept records")
    for person in range(len(enrolled.names)):
        own = rng.permutation(np.flatnonzero(enrolled.identities == person))
        kept[own[: min(round(config.data.split.enrolled_test * len(own)), len(own) - 1)]] = True
    return kept


def _check(config: VerticalConfig, records: VerticalRecords) -> None:
    """Refuses people whom nothing could be measured on, and views that no backbone reads."""
    size = records.image_size
    if {*config.parties.passive} - {ATTRIBUTES}:
        config.passive.backbone.build(size, stream(config.seed, "fit"))
    if config.active.backbone is not None:
        config.active.backbone.build(size, stream(config.seed, "fit"))
    if config.evaluation.matching is None:
        counts = np.bincount(records.identities[records.groups == TEST])
        if len(counts) < 2 or counts.max() < 2:
            raise ValueError(
                "data.split.test needs two people, one of them with two records (or "
                "evaluation.matching across views), "
                f"got {len(counts)} people with at most {counts.max()} records"
            )


def held_rows(config: VerticalConfig, n_records: int, party: int) -> NDArray[np.int64]:
    """Returns which records passive party number ``party`` holds, in an order of its own."""
    rng = numpy_stream(config.seed, "records held", party)
    n_held = n_records - int(config.data.missing_share * n_records)
    return rng.permutation(n_records)[:n_held].astype(np.int64)


def alignment_key(config: VerticalConfig) -> bytes:
    """Returns the secret that the parties share for alignment.

    In a simulation it follows from the run's seed; real parties agree on 32 random bytes outside
    the federation.
    """
    return hashlib.sha256(f"alignment key {config.seed}".encode()).digest()


def channels(config: VerticalConfig) -> tuple[Channel, ...]:
    """Returns what the active party knows of each passive party."""
    release: AnyRelease = config.passive.release
    dim = config.passive.backbone.embedding_size
    return tuple(
        Channel(party, dim, release.bound, release.noise) for party in config.parties.passive
    )


def build_active(
    config: VerticalConfig, records: VerticalRecords, n_aligned: int, device: torch.device
) -> ActiveParty:
    """Returns the active party as a run of this seed starts, on ``device``; its own bottom model is
    pretrained where the configuration says so.

    Raises:
        ValueError: If the settings do not fit, see :meth:`ActiveSettings.build`.
    """
    active = config.active.build(
        channels(config),
        records.n_enrolled,
        n_aligned,
        records.image_size,
        stream(config.seed, "active party"),
    )
    training, own = config.training, config.parties.active
    public, pretraining = records.public, training.pretraining
    if pretraining is not None and public is not None and own is not None:
        if active.model.own is None or config.active.backbone is None:
            raise ValueError("pretraining an own bottom model needs active.backbone, got none")
        pretrain_backbone(
            active.model.own.to(device),
            config.active.backbone.embedding_size,
            to_float(public.views[own]),
            torch.from_numpy(public.identities),
            pretraining,
            training.augmentation,
            stream(config.seed, "pretraining", "active"),
        )
    active.model.to(device)
    return active


def build_client(
    config: VerticalConfig, records: VerticalRecords, party: int, device: torch.device
) -> VerticalClient:
    """Returns passive party number ``party`` of the run.

    Raises:
        ValueError: If the run has no such party.
    """
    if not 0 <= party < len(config.parties.passive):
        raise ValueError(f"party needs to be in 0..{len(config.parties.passive) - 1}, got {party}")
    view = config.parties.passive[party]
    rows = held_rows(config, len(records), party)
    public = records.public
    return VerticalClient(
        party=party,
        name=view,
        images=records.views[view][rows],
        tokens=hashed([records.ids[row] for row in rows], alignment_key(config)),
        settings=config.passive,
        augmentation=config.training.augmentation,
        pretraining=config.training.pretraining,
        public=None if public is None else (public.views[view], public.identities),
        n_rounds=config.training.n_rounds,
        seed=config.seed,
        secret=secret_of(config.seed, party),
        state=PartyState(party_folder(config, party)),
        device=device,
    )


def secret_of(seed: int, party: int) -> int:
    """Returns the seed of a simulated party's noise.

    It follows from the run's seed, so that runs can be repeated; a real party draws its own and
    never tells anyone (``secrets.randbits(63)``).
    """
    digest = hashlib.sha256(f"noise secret of party {party} {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def party_folder(config: VerticalConfig, party: int) -> Path:
    """Where a simulated party keeps what is its own: below the run folder, one folder a party."""
    return config.folder.absolute() / "sites" / f"{party:04d}"
