"""The ClientApp of a real site: its own people, its own folder, the run's model and settings."""

import logging
from pathlib import Path

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from clients.face import FaceClient
from clients.malicious import MaliciousClient
from clients.people import Register
from clients.state import SiteState
from fedface.attacks.actors import Actors
from fedface.config import ConfigError
from fedface.data.faces import Faces
from simulations.app import Shell, shell_app
from simulations.build import build_backbone, device_of_worker, remaining_part
from simulations.deploy.grid import SITE
from simulations.deploy.order import read_order
from simulations.deploy.settings import SITE as SITE_FOLDER
from simulations.deploy.settings import SiteFolder, from_environment
from simulations.deploy.site_data import faces_of, red_team_of
from simulations.gates import site_gate
from simulations.private import site_account
from simulations.schema import RunConfig
from strategies.cohorts import CLIENT_ID


def site_app(fab_hash: str) -> ClientApp:
    """Returns the app that answers one message at the site of this process.

    Args:
        fab_hash: SHA-256 of the bundle that the run was submitted with, for the site's policy.
    """
    return shell_app(
        lambda message, context: shell_of(_folder(), message, context),
        lambda context: site_gate(_folder(), context, fab_hash),
    )


def _folder() -> SiteFolder:
    return SiteFolder(from_environment(SITE_FOLDER))


def shell_of(folder: SiteFolder, message: Message, context: Context) -> Shell:
    """Returns the site as a client of the run that ``message`` belongs to.

    Raises:
        ConfigError: If the run does not name this site, is for another fedface, or its model
            cannot read the site's images.
    """
    settings = folder.settings
    order = read_order(context)
    config, client = order.config, _client_of(message)
    sites = order.deployment.sites
    if not 0 <= client < len(sites) or sites[client] != settings.name:
        raise ConfigError(f"run: needed site {settings.name} among its sites, found another")
    device = device_of_worker()
    register, faces = Register(folder.path), faces_of(settings).load()
    faces = faces.select(remaining_part(faces, np.arange(len(faces)), register))
    shell = face_client(config, client, faces, folder.state(config.name), device, register)
    if (attack := red_team_of(settings)) is None:
        return shell
    logging.getLogger(__name__).warning("red_team: this site plays %s", attack.name)
    return MaliciousClient(shell, attack, Actors(), colluder=0, n_clients=len(sites), n_malicious=1)


def face_client(
    config: RunConfig,
    client: int,
    faces: Faces,
    state: Path,
    device: torch.device,
    register: Register,
) -> FaceClient:
    """Returns a site with its own ``faces`` as client number ``client`` of a run.

    Raises:
        ValueError: If the run's backbone cannot read images of this size.
    """
    backbone = build_backbone(config, faces.images.shape[1])
    backbone = backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return FaceClient(
        client=client,
        images=faces.images,
        labels=faces.identities.astype(np.int64),
        n_identities=faces.n_identities,
        backbone=backbone,
        head=config.model.head,
        embedding_size=config.model.backbone.embedding_size,
        training=config.training,
        n_rounds=config.federation.n_rounds,
        seed=config.seed,
        state=SiteState(state, register.pseudonyms(faces.names), register, config.name),
        device=device,
        private=site_account(config, client, state, state.parent / "privacy-ledger.jsonl", True),
    )


def _client_of(message: Message) -> int:
    """Which client the server says that this site is."""
    record = message.content.get(SITE) if message.has_content() else None
    value = record.get(CLIENT_ID) if isinstance(record, ConfigRecord) else None
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"message: needed the record {SITE!r} with {CLIENT_ID}, found none")
    return value


app = site_app("")
"""For a plain ``flower-supernode``, which loads the bundle by itself and tells nobody its hash."""
