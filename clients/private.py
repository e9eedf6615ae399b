"""A site's side of differential privacy: charge first, train, release once, say public figures.

What leaves the site is the private update and numbers that do not depend on its people: the public
expected count in place of its own, the steps, no loss, and what its account has spent. An update
that was released is kept (the two latest), so that a server that asks for the same round again gets
the very same bytes: to send them twice costs nothing.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, Context, MetricRecordValues
from numpy.typing import NDArray
from torch import Tensor, nn

from fedface.privacy.accounting import Steps, epsilon
from fedface.privacy.budget import Account, Budget, Charge
from fedface.privacy.private_training import train_privately
from fedface.privacy.site_level import private_update
from fedface.privacy.units import AnyPrivacy, SitePrivacy
from fedface.report.files import read_tensors, write_tensors
from fedface.training.local import LocalTraining, TrainingResult
from fedface.training.site_update import SiteUpdate

LEDGER = "privacy-ledger"
"""The record of Flower's state, and the name of the file, that hold the account."""

_HEAD = "head."
_KEPT = 2


@dataclass(frozen=True)
class SiteAccount:
    """Privacy of one site: its mechanism, its account and what it has released.

    Attributes:
        privacy: Unit, noise, budget.
        client: The site's partition id.
        seed: The run's seed.
        n_rounds: Rounds of the whole run.
        training: How the site trains.
        run: The run's name, for readers of the account.
        ledger: The account's file, or None to keep it in Flower's state alone.
        released: Folder of released updates, or None to keep none: a repeated round is then paid
            again.
    """

    privacy: AnyPrivacy
    client: int
    seed: int
    n_rounds: int
    training: LocalTraining
    run: str
    ledger: Path | None
    released: Path | None

    @property
    def by_example(self) -> bool:
        """Whether the training itself is private (units image and subject)."""
        return not isinstance(self.privacy, SitePrivacy)

    @property
    def budget(self) -> Budget:
        """What this site may spend."""
        p = self.privacy
        return Budget(p.target_epsilon, p.delta, p.accountant)

    @property
    def steps(self) -> Steps:
        """The steps of one round."""
        return self.privacy.cost(self.n_rounds, self.training.epochs)

    def account(self, context: Context) -> Account:
        """Returns the account: the file, and what Flower's state holds of it.

        Raises:
            ValueError: If the file is damaged.
        """
        kept = context.state.get(LEDGER)
        text = str(kept["lines"]) if isinstance(kept, ConfigRecord) else ""
        return Account(self.ledger, text.splitlines())

    def train(
        self,
        backbone: nn.Module,
        head: nn.Module,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        server_round: int,
        number: int,
    ) -> TrainingResult:
        """Trains one round by DP-SGD with the noise of charge ``number``, in place."""
        if isinstance(self.privacy, SitePrivacy):
            raise ValueError("private training needs the unit image or subject, got site")
        where = (server_round, self.client, number)
        return train_privately(
            backbone,
            head,
            images,
            labels,
            self.training,
            self.privacy,
            self.steps,
            self.privacy.generator(self.seed, "private training", *where),
            self.privacy.generator(self.seed, "private noise", *where),
            server_round,
            self.n_rounds,
        )

    def release(
        self,
        context: Context,
        server_round: int,
        weights: Tensor,
        train: Callable[[int], SiteUpdate],
    ) -> SiteUpdate:
        """Returns this round's private update; its charge is on the disk before training starts.

        Args:
            context: Flower's state of the site.
            server_round: The round, from 1.
            weights: ``(dim,)`` the global weights that training starts from.
            train: Charge number -> the training's outcome.

        Raises:
            BudgetSpent: If the round cannot be paid; nothing was trained.
            ValueError: Whatever went wrong in training; the charge stays.
        """
        account = self.account(context)
        key = self._key(server_round, weights)
        found = account.find(key)
        if found is not None and found[1] == "released":
            kept = self._kept(found[0])
            if kept is not None:
                return kept
        if found is not None and found[1] is None:
            charge = found[0]
        else:
            purpose = f"{self.run} round {server_round}"
            charge = account.charge(key, self.privacy.unit, self.steps, self.budget, purpose)
        with self._mirrored(account, context):
            try:
                trained = self._private(train(charge.number), server_round, charge)
            except Exception:
                account.settle(charge, "failed")
                raise
            self._keep(charge, trained)
            account.settle(charge, "released")
        return trained

    def metrics(self, context: Context, server_round: int) -> dict[str, MetricRecordValues]:
        """Returns what a reply says: public figures, no loss, and the epsilon spent with delta."""
        delta, accountant = self.privacy.delta, self.privacy.accountant
        account = self.account(context)
        spent = account.spent(delta, accountant)
        if not account.charges:  # who attacks pays nothing, and says what an honest site would
            spent = epsilon([self.steps] * server_round, delta, accountant)
        figures: dict[str, MetricRecordValues] = {
            "num-examples": self._nominal,
            "num-steps": self.steps.n_steps,
            "loss": 0.0,
            "delta": delta,
        }
        return figures | ({"epsilon": spent} if isfinite(spent) else {})

    @property
    def _nominal(self) -> int:
        """The units of a typical site: what every site claims, whatever it has."""
        if isinstance(self.privacy, SitePrivacy):
            return 1
        return max(1, round(self.privacy.batch_size / self.privacy.sample_rate))

    def _private(self, trained: SiteUpdate, server_round: int, charge: Charge) -> SiteUpdate:
        """The update as it may leave; training by example has made it private already."""
        if not isinstance(self.privacy, SitePrivacy):
            return trained
        where = ("site noise", server_round, self.client, charge.number)
        rng = self.privacy.generator(self.seed, *where)
        noise = charge.noise_multiplier
        update = private_update(trained.update, self.privacy.clip, noise, rng)
        return replace(trained, update=update)

    def _key(self, server_round: int, weights: Tensor) -> str:
        """What makes a repetition the same."""
        settings = "\n".join(
            (
                self.privacy.model_dump_json(exclude={"target_epsilon", "ledger", "delta"}),
                self.training.model_dump_json(),
                f"{self.steps} {self.seed} {self.client} {server_round} {self.n_rounds}",
            )
        )
        digest = hashlib.sha256(settings.encode())
        digest.update(np.ascontiguousarray(weights.numpy()).tobytes())
        return digest.hexdigest()

    @contextmanager
    def _mirrored(self, account: Account, context: Context) -> Iterator[None]:
        """Keeps the account in Flower's state too, before and after."""
        context.state[LEDGER] = ConfigRecord({"lines": "\n".join(account.lines)})
        try:
            yield
        finally:
            context.state[LEDGER] = ConfigRecord({"lines": "\n".join(account.lines)})

    def _path(self, number: int) -> Path:
        return (self.released or Path()) / f"released-{number:06d}.safetensors"

    def _keep(self, charge: Charge, trained: SiteUpdate) -> None:
        """Writes what is about to leave, and the head that belongs to it."""
        if self.released is None:
            return
        self.released.mkdir(parents=True, exist_ok=True)
        head = {_HEAD + name: value.cpu() for name, value in trained.head.items()}
        counts = f"{trained.n_examples} {trained.n_steps} {trained.loss}"
        tensors = {"update": trained.update, **head}
        write_tensors(self._path(charge.number), tensors, key=charge.key, counts=counts)
        self._path(charge.number - _KEPT).unlink(missing_ok=True)

    def _kept(self, charge: Charge) -> SiteUpdate | None:
        """What was released for ``charge``, if it is still there."""
        path = self._path(charge.number)
        if self.released is None or not path.exists():
            return None
        tensors, facts = read_tensors(path, key=charge.key)
        n_examples, n_steps, loss = facts["counts"].split()
        head = {name[len(_HEAD) :]: v for name, v in tensors.items() if name.startswith(_HEAD)}
        update = tensors["update"]
        return SiteUpdate(update, {}, head, int(n_examples), int(n_steps), float(loss))
