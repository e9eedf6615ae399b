"""Differential privacy over a whole run: what sites are given, what the server watches and says."""

from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message, MetricRecord
from torch import nn

from clients.private import SiteAccount
from fedface.aggregation.cohort import Aggregator
from fedface.privacy.accounting import Steps
from fedface.privacy.budget import Account, Budget
from fedface.privacy.release import BudgetSpent
from fedface.privacy.site_level import PrivateMean
from fedface.privacy.unfit import refuse_unfit
from fedface.privacy.units import AnyPrivacy, ImagePrivacy, SitePrivacy, SubjectPrivacy
from simulations.schema import RunConfig
from strategies.rounds import RoundRecord


def site_account(
    config: RunConfig,
    client: int,
    folder: Path,
    ledger: Path | None = None,
    secret: bool = False,
) -> SiteAccount | None:
    """Returns the privacy of site ``client``, None where the run asks nothing of its sites.

    Args:
        config: The run.
        client: The site's partition id.
        folder: The site's own folder for this run.
        ledger: Its account's file; by default in ``privacy.ledger``, or else in ``folder``.
        secret: Draw noise and sampling from the operating system whatever the run says: at a real
            site the run's seed is known to others.
    """
    privacy = config.privacy
    if privacy is None or _at_server(privacy):
        return None
    if secret:
        privacy = privacy.model_copy(update={"randomness": "secret"})
    return SiteAccount(
        privacy=privacy,
        client=client,
        seed=config.seed,
        n_rounds=config.federation.n_rounds,
        training=config.training,
        run=config.name,
        ledger=ledger or _ledger(privacy, client, folder),
        released=folder / "released",
    )


def server_rule(config: RunConfig) -> Aggregator:
    """Returns the run's aggregator, with the server's noise where privacy asks for it."""
    privacy, federation = config.privacy, config.federation
    if not isinstance(privacy, SitePrivacy) or privacy.noise_at != "server":
        return config.aggregator
    return PrivateMean(
        n_cohort=federation.clients_per_round or federation.n_clients,
        privacy=privacy,
        noise_multiplier=round_cost(config, privacy).noise_multiplier,
    )


def round_cost(config: RunConfig, privacy: AnyPrivacy) -> Steps:
    """Returns the steps of one round of the run."""
    return privacy.cost(config.federation.n_rounds, config.training.epochs)


def check_privacy(
    config: RunConfig, backbone: nn.Module, people: list[np.ndarray[Any, np.dtype[np.int64]]]
) -> None:
    """Checks that the promised privacy can be kept on the faces of the run.

    Args:
        config: The run.
        backbone: The shared network.
        people: The identity of each image of each site.

    Raises:
        ValueError: If the backbone mixes people, delta is too large, a subject's images lie at
            several sites, or the accounts have no room for a round at enough sites.
    """
    privacy = config.privacy
    if privacy is None:
        return
    refuse_unfit(backbone)
    if isinstance(privacy, SitePrivacy):
        privacy.check_delta(config.federation.n_clients, "sites")
    elif isinstance(privacy, ImagePrivacy):
        privacy.check_delta(max(map(len, people)), "images of the largest site")
    else:
        privacy.check_delta(max(len(np.unique(p)) for p in people), "people of the largest site")
        _require_one_site_each(people)
    _require_room(config, privacy)


def _require_one_site_each(people: list[np.ndarray[Any, np.dtype[np.int64]]]) -> None:
    at = np.concatenate([np.unique(p) for p in people])
    if torn := len(at) - len(np.unique(at)):
        raise ValueError(
            "privacy.unit subject needs all images of a person at one site (data.partition "
            f"by_identity), found {torn} people more than once"
        )


def _require_room(config: RunConfig, privacy: AnyPrivacy) -> None:
    """Refuses a run that too few sites could pay a single round of; looks, and writes nothing."""
    steps, budget = round_cost(config, privacy), _budget(privacy)
    if privacy.ledger is None:
        Account().require(steps, budget)
        return
    spent: list[str] = []
    n_clients = config.federation.n_clients
    for client in range(n_clients):
        path = _ledger(privacy, client, Path())
        try:
            (Account(path) if path.exists() else Account()).require(steps, budget)
        except BudgetSpent as error:
            spent.append(f"site {client}: {error}")
    if n_clients - len(spent) < config.federation.min_valid_replies:
        raise ValueError(
            f"privacy.ledger {privacy.ledger}: needed room at "
            f"{config.federation.min_valid_replies} sites, found {len(spent)} of {n_clients} "
            f"spent; {spent[0]}"
        )


@dataclass
class PrivacyWatch:
    """What a run has spent, as the server learns it from the sites or accounts for itself.

    Attributes:
        config: The run; without privacy this does nothing.
        malicious: Clients whose word is not taken (known to a simulation).
        spent: The largest epsilon of any honest site so far; infinity without noise.
    """

    config: RunConfig
    malicious: tuple[int, ...] = ()
    spent: float = 0.0
    _accounts: dict[int, Account] = field(default_factory=dict)

    def heard(self, client: int, reply: Message) -> None:
        """Takes up what a site says that it has spent."""
        privacy = self.config.privacy
        if privacy is None or client in self.malicious or not reply.has_content():
            return
        metrics = reply.content.get("metrics")
        if not isinstance(metrics, MetricRecord):
            return
        said = metrics.get("epsilon")
        if isinstance(said, float) and said >= 0:
            self.spent = max(self.spent, said)

    def before(self) -> str | None:
        """Returns why no round can follow where the server keeps the accounts, or None."""
        privacy = self.config.privacy
        if privacy is None or not _at_server(privacy):
            return None
        steps, budget = round_cost(self.config, privacy), _budget(privacy)
        try:
            for client in range(self.config.federation.n_clients):
                self._account(client).require(steps, budget)
        except BudgetSpent as error:
            return str(error)
        return None

    def after(self, record: RoundRecord) -> None:
        """Charges the sites of a round where the server keeps the accounts, before its release."""
        privacy = self.config.privacy
        if privacy is None:
            return
        steps = round_cost(self.config, privacy)
        if steps.noise_multiplier == 0:
            self.spent = float("inf")
        if not _at_server(privacy) or record.kept_global:
            return
        key = f"{self.config.name} {self.config.seed} round {record.server_round}"
        for client in (c.client for c in record.clients):
            account = self._account(client)
            if account.find(key) is None:
                charge = account.charge(key, privacy.unit, steps, _budget(privacy), key)
                account.settle(charge, "released")
            self.spent = max(self.spent, account.spent(privacy.delta, privacy.accountant))

    def exhausted(self, record: RoundRecord) -> str | None:
        """Returns why the run has to end: the round failed for budgets alone; else None."""
        if self.config.privacy is None or not record.kept_global or not record.rejected:
            return None
        reasons = [why for why in record.rejected.values() if BudgetSpent.__name__ not in why]
        return None if reasons else f"privacy budgets are spent: {record.kept_global}"

    def facts(self) -> dict[str, Any] | None:
        """Returns the account after a round, for its event; epsilon None is infinity."""
        privacy = self.config.privacy
        if privacy is None:
            return None
        shown = self.spent if isfinite(self.spent) else None
        target = privacy.target_epsilon
        left = None if target is None or shown is None else max(0.0, target - shown)
        return {
            "unit": privacy.unit,
            "epsilon": shown,
            "left": left,
            "delta": privacy.delta,
        }

    def _account(self, client: int) -> Account:
        privacy = self.config.privacy
        if client not in self._accounts and privacy is not None:
            folder = self.config.folder.absolute() / "privacy" / f"{client:04d}"
            self._accounts[client] = Account(_ledger(privacy, client, folder))
        return self._accounts[client]


def describe_privacy(config: RunConfig, rounds: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the statement of a finished run: unit, epsilon, delta and how they came about."""
    privacy = config.privacy
    if privacy is None:
        return None
    last = rounds[-1].get("privacy") if rounds else None
    steps = round_cost(config, privacy)
    subject = privacy.images_per_subject if isinstance(privacy, SubjectPrivacy) else None
    return {
        "unit": privacy.unit,
        "epsilon": None if last is None else last["epsilon"],
        "delta": privacy.delta,
        "target_epsilon": privacy.target_epsilon,
        "accountant": privacy.accountant,
        "sampling": privacy.sampling,
        "trust": privacy.trust,
        "clip": privacy.clip,
        "images_per_subject": subject,
        "per_round": dict(steps._asdict()),
        "randomness": privacy.randomness,
    }


def _at_server(privacy: AnyPrivacy) -> bool:
    return isinstance(privacy, SitePrivacy) and privacy.noise_at == "server"


def _budget(privacy: AnyPrivacy) -> Budget:
    return Budget(privacy.target_epsilon, privacy.delta, privacy.accountant)


def _ledger(privacy: AnyPrivacy, client: int, folder: Path) -> Path:
    """The account's file: in the folder that outlives runs, or in the site's own."""
    if privacy.ledger is not None:
        return privacy.ledger.expanduser().absolute() / f"site-{client:04d}.jsonl"
    return folder / "privacy-ledger.jsonl"
