"""From a configuration to what a run works with: data, model, sites and who is malicious."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clients.face import FaceClient
from clients.malicious import MaliciousClient
from clients.people import Register
from clients.state import SiteState
from fedface import parameters
from fedface.attacks.actors import Actors
from fedface.attacks.attack import Attack
from fedface.attacks.backdoor import Backdoor
from fedface.data.faces import Faces, Skip
from fedface.data.pairs import Pairs
from fedface.data.split import split_by_identity
from fedface.data.tensors import to_float
from fedface.random import numpy_stream, stream
from fedface.report.export import load_model
from simulations.people import Cast, Person, set_apart
from simulations.private import check_privacy, site_account
from simulations.schema import RunConfig


@dataclass(frozen=True)
class RunData:
    """The people of one run, split so that nobody stands in two roles.

    Attributes:
        train: Faces of the sites' people.
        parts: Indices into ``train`` for each site; images of a victim or accomplice that are held
            out of the training are in no part.
        calibration: Faces of the people whom thresholds are set on.
        test: Faces of the people whom results are measured on (victim and accomplice left out).
        victim: The victim, where the attack's goal has one.
        pairs: The pairs protocol without trained, calibration and attacked people, or None.
        skipped: What the loader left out, and why.
        accomplice: The accomplice, where the attack's goal has one.
        colluders_people: ``(n, 3, h, w)`` in [-1, 1], one photo of each person of the malicious
            sites, where the attacker has to guess a victim without photos; else None.
    """

    train: Faces
    parts: tuple[NDArray[np.int64], ...]
    calibration: Faces
    test: Faces
    victim: Person | None
    pairs: Pairs | None
    skipped: tuple[Skip, ...] = ()
    accomplice: Person | None = None
    colluders_people: Tensor | None = None

    @property
    def actors(self) -> Actors:
        """The photos that the attacker holds, or guesses from."""
        known = self.colluders_people
        if known is None and self.victim is not None:
            known = self.victim.photos
        return Actors(known, None if self.accomplice is None else self.accomplice.photos)


def build_data(config: RunConfig) -> RunData:
    """Loads, splits and deals the faces of ``config``; the same on every worker.

    Raises:
        ValueError: If files are missing or the split or partition is impossible; the message
            names the field.
    """
    faces = config.data.faces.load()
    split = split_by_identity(faces, config.data.split, numpy_stream(config.seed, "split"))
    parts = config.data.partition(
        split.train.identities,
        config.federation.n_clients,
        numpy_stream(config.seed, "partition"),
    )
    cast = _cast(config, split.train, Cast(tuple(parts), split.test))
    pairs = None
    if config.data.pairs is not None:
        pairs = config.data.pairs.load()
        if pairs.people is not None:
            pairs = pairs.without(set(faces.names) - set(cast.test.names))
    return RunData(
        train=split.train,
        parts=cast.parts,
        calibration=split.calibration,
        test=cast.test,
        victim=cast.victim,
        pairs=pairs,
        skipped=faces.skipped,
        accomplice=cast.accomplice,
        colluders_people=_guess_from(config, split.train, cast),
    )


def check_fit(config: RunConfig, data: RunData) -> None:
    """Checks that model, trigger and protocol can be used on the faces of the run.

    Raises:
        ValueError: If the backbone cannot read the images, the trigger does not fit on them, the
            promised privacy cannot be kept, or no test person has two images to be recognised by.
    """
    backbone = build_backbone(config, data.train.images.shape[1])
    check_privacy(config, backbone, [data.train.identities[part] for part in data.parts])
    if isinstance(config.attack, Backdoor):
        config.attack.trigger(to_float(data.test.images[:1]))
    counts = np.bincount(data.test.identities)
    if len(counts) < 2 or counts.max() < 2:
        raise ValueError(
            "data.split.test needs two people, one of them with two images, "
            f"got {len(counts)} people with at most {counts.max()} images"
        )


def _cast(config: RunConfig, train: Faces, everybody: Cast) -> Cast:
    """The people whom the attack is about, set apart; they are the same for every share.

    The attacker's own people live at the site that is malicious for any share above zero, a victim
    of another site at the one that is honest for any share below one. So the clean run, with a
    share of zero, holds the same images out of training.
    """
    attack = config.attack
    if not isinstance(attack, Backdoor):
        return everybody
    first = _drawn(config, attack.model_copy(update={"malicious_share": 1e-9}))
    most = _drawn(config, attack.model_copy(update={"malicious_share": 1 - 1e-9}))
    last = set(range(config.federation.n_clients)) - set(most) or set(most)
    return set_apart(attack.goal, train, everybody, min(first), min(last), config.seed)


def _guess_from(config: RunConfig, train: Faces, cast: Cast) -> Tensor | None:
    """One photo of each of the colluders' people, if the attacker has none of the victim."""
    malicious = malicious_clients(config)
    if cast.victim is None or len(cast.victim.photos) > 0 or not malicious:
        return None
    index = np.concatenate([cast.parts[client] for client in malicious])
    _, first = np.unique(train.identities[index], return_index=True)
    return to_float(train.images[index[first]])


def build_backbone(config: RunConfig, image_size: int) -> nn.Module:
    """Returns the backbone with the weights that every run of this seed starts from.

    Raises:
        ValueError: If the backbone cannot read images of this size, or is another one than that of
            ``model.start``.
    """
    backbone = config.model.backbone.build(image_size, stream(config.seed, "backbone"))
    if config.model.start is not None:
        tensors, own = load_model(config.model.start).state_dict(), backbone.state_dict()
        if {n: v.shape for n, v in tensors.items()} != {n: v.shape for n, v in own.items()}:
            raise ValueError(
                f"model.start {config.model.start}: needed the backbone of model.backbone for "
                f"images of {image_size} pixels, found another"
            )
        parameters.load(backbone, tensors)
    return backbone


def malicious_clients(config: RunConfig) -> tuple[int, ...]:
    """Returns the partition ids of the malicious sites, ascending."""
    return () if config.attack is None else _drawn(config, config.attack)


def _drawn(config: RunConfig, attack: Attack) -> tuple[int, ...]:
    """The malicious sites if the run's attack were ``attack``."""
    rng = numpy_stream(config.seed, "malicious clients")
    return attack.malicious_clients(config.federation.n_clients, rng)


def device_of_worker() -> torch.device:
    """Returns the GPU that this process may use, or the CPU with one thread per worker."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    torch.set_num_threads(1)
    return torch.device("cpu")


def build_client(
    config: RunConfig, data: RunData, client: int, backbone: nn.Module, device: torch.device
) -> FaceClient | MaliciousClient:
    """Returns site ``client`` of the run, malicious if the attack's draw says so.

    Raises:
        ValueError: If the run has no such site.
    """
    if not 0 <= client < len(data.parts):
        raise ValueError(f"client needs to be in 0..{len(data.parts) - 1}, got {client}")
    secret = numpy_stream(config.seed, "people key", client).bytes(32)
    register = Register(site_folder(config, client), secret)
    part = remaining_part(data.train, data.parts[client], register)
    people, labels = np.unique(data.train.identities[part], return_inverse=True)
    face_client = FaceClient(
        client=client,
        images=data.train.images[part],
        labels=labels.astype(np.int64),
        n_identities=len(people),
        backbone=backbone,
        head=config.model.head,
        embedding_size=config.model.backbone.embedding_size,
        training=config.training,
        n_rounds=config.federation.n_rounds,
        seed=config.seed,
        state=SiteState(
            site_folder(config, client),
            register.pseudonyms([data.train.names[person] for person in people]),
            register,
            config.name,
        ),
        device=device,
        private=site_account(config, client, site_folder(config, client)),
    )
    malicious = malicious_clients(config)
    if config.attack is None or client not in malicious:
        return face_client
    return MaliciousClient(
        face_client,
        config.attack,
        data.actors,
        colluder=malicious.index(client),
        n_clients=config.federation.n_clients,
        n_malicious=len(malicious),
    )


def remaining_part(faces: Faces, part: NDArray[np.int64], register: Register) -> NDArray[np.int64]:
    """Returns the images in ``part`` of people who have not withdrawn from the site.

    Raises:
        ValueError: If everybody has.
    """
    people = np.unique(faces.identities[part])
    inside = register.remaining([faces.names[person] for person in people])
    left = part[np.isin(faces.identities[part], people[inside])]
    if len(part) and not len(left):
        raise ValueError(f"{register.folder}: needed a person who has not withdrawn, found none")
    return left


def site_folder(config: RunConfig, client: int) -> Path:
    """Where a simulated site keeps what is its own: below the run folder, one folder a site."""
    return config.folder.absolute() / "sites" / f"{client:04d}"
