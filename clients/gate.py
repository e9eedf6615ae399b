"""The gate: no reply leaves a site that its policy does not allow, and none without a receipt.

It is a Flower client mod: it stands around the app in every engine and at real sites, where the app
is the installed fedface whatever code a run was submitted with.

A refused reply becomes an error that says so. The server is told the rule that was broken, in
words of this package alone; what the app wrote (names of tensors, texts, numbers) goes into the
receipts and no further, because it could carry what must not leave.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from typing import Any

from flwr.app import ConfigRecord, Context, Error, Message

from clients.judgement import (
    CONFIG,
    Denied,
    Release,
    Request,
    admit,
    judged,
    require_answer,
    require_budget,
)
from clients.policy import Shape, SitePolicy
from clients.receipts import ReceiptError, Receipts

DENIED, RAISED = 6, 2
"""Flower's codes for a mod that refuses (MOD_FAILED_PRECONDITION) and for an app that raised."""

Backbone = Callable[[], tuple[Mapping[str, Shape], Mapping[str, Shape]]]
"""Names and shapes of the backbone's parameters and buffers; called where a policy needs them."""


class Gate:
    """One site's policy, put to work."""

    def __init__(
        self,
        policy: SitePolicy,
        receipts: Receipts,
        backbone: Backbone | None = None,
        run_hash: str | None = None,
        app: str | None = None,
    ) -> None:
        """Keeps what is needed; nothing is read or written before the first message.

        Args:
            policy: What may leave.
            receipts: Where every release is written down.
            backbone: What ``backbone`` in the policy stands for; None where the policy must name
                its tensors.
            run_hash: SHA-256 of the run's configuration, where it is known.
            app: SHA-256 of the app bundle, where it is known.

        Raises:
            ValueError: If the policy says ``backbone`` and there is none.
        """
        if backbone is None and not policy.explicit:
            raise ValueError(
                "a site policy needs to name its tensors here, got 'backbone' "
                "(`fedface site policy CONFIG` writes the list)"
            )
        self.policy = policy
        self.receipts = receipts
        self.run_hash = run_hash
        self.app = app
        self._backbone = backbone

    def __call__(
        self, message: Message, context: Context, app: Callable[[Message, Context], Message]
    ) -> Message:
        """Answers ``message`` through ``app`` as far as the policy allows: a Flower client mod."""
        if (refusal := self.refusal(message)) is not None:
            return refusal
        try:
            reply = app(message, context)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            reply = Message(Error(RAISED, reason), reply_to=message)
        return self.passed(message, reply)

    def refusal(self, message: Message) -> Message | None:
        """Returns the refusal of a message that the app must not even see, or None."""
        request = self.request(message)
        try:
            admit(self.policy, request)
        except Denied as denied:
            return self._refused(message, request, denied)
        return None

    def passed(self, message: Message, reply: Message) -> Message:
        """Returns what leaves the site for ``reply``: itself, or an error that says why not."""
        request = self.request(message)
        try:
            admit(self.policy, request)
            require_answer(message, reply)
            if reply.has_error():
                reply = _shortened(self.policy, message, reply)
            release = self._release(request, reply)
            self.receipts.append(lambda earlier: self._charged(earlier, request, release))
        except Denied as denied:
            return self._refused(message, request, denied)
        except ReceiptError:
            logging.getLogger(__name__).exception("no receipt, nothing leaves")
            return denial(message, "no receipt could be written")
        except Exception:  # whatever a stranger's reply does to the judge, it does not leave
            logging.getLogger(__name__).exception("a reply could not be judged")
            return denial(message, "a reply that could not be judged")
        return reply

    def request(self, message: Message) -> Request:
        """Returns what ``message`` asks for."""
        record = message.content.get(CONFIG) if message.has_content() else None
        number = record.get("server-round") if isinstance(record, ConfigRecord) else None
        return Request(
            self.run_hash or str(message.metadata.run_id),
            self.run_hash,
            self.app,
            message.metadata.message_type.split(".")[0],
            number if isinstance(number, int) else None,
        )

    def _release(self, request: Request, reply: Message) -> Release:
        if reply.has_error():
            text = str(reply.error.reason).encode()
            return Release(len(text), 0, sha256(text).hexdigest(), error=True)
        policy = self.policy
        if request.kind == "train" and not policy.explicit and self._backbone is not None:
            policy = policy.named(*self._backbone())
        return judged(policy, request.kind, reply.content)

    def _charged(
        self, earlier: Sequence[Mapping[str, Any]], request: Request, release: Release
    ) -> dict[str, Any]:
        """The receipt of ``release``, if the budgets allow it after what went before."""
        gone = [body for body in earlier if body.get("event") == "released"]
        require_budget(self.policy, gone, request, release)
        return self._receipt("released", request) | asdict(release)

    def _refused(self, message: Message, request: Request, denied: Denied) -> Message:
        try:
            note = {"rule": denied.rule, "detail": denied.detail[:500]}
            self.receipts.append(lambda earlier: self._receipt("denied", request) | note)
        except ReceiptError:
            logging.getLogger(__name__).exception("a refusal could not be written down")
        return denial(message, denied.rule)

    def _receipt(self, event: str, request: Request) -> dict[str, Any]:
        return {"event": event, "policy": self.policy.digest} | asdict(request)


def _shortened(policy: SitePolicy, message: Message, reply: Message) -> Message:
    """An app's error, with as much of its text as the policy lets out."""
    n = policy.error_characters
    text = "".join(c if c.isprintable() else " " for c in str(reply.error.reason)[:n])
    logging.getLogger(__name__).warning("the app failed: %s", reply.error.reason)
    reason = text or "the app failed; the site's log says why"
    return Message(Error(reply.error.code, reason), reply_to=message)


def denial(message: Message, rule: str) -> Message:
    """Returns the answer to ``message`` that a policy gives in place of a reply."""
    return Message(Error(DENIED, f"denied by the site's policy: {rule}"), reply_to=message)
