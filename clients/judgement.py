"""What a site's policy says of one reply: pure judgement, no file is touched.

A reply is judged by comparing, not by reading: of an allowed tensor the bytes must begin with the
very ``.npy`` header that numpy writes for its name's shape, so nothing of a stranger is parsed.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from clients.policy import Shape, SitePolicy, canonical

ARRAYS, BUFFERS, METRICS, CONFIG = "arrays", "buffers", "metrics", "config"
EPSILON, DELTA = "epsilon", "delta"
"""Metrics by which a reply states what its run has spent of this site's privacy so far."""


class Denied(ValueError):
    """A reply must not leave; ``rule`` may be told to everybody, ``detail`` to the site alone."""

    def __init__(self, rule: str, detail: str = "") -> None:
        """Says which rule was broken, and by what."""
        super().__init__(f"{rule}: {detail}" if detail else rule)
        self.rule = rule
        self.detail = detail


@dataclass(frozen=True)
class Request:
    """What a reply answers, from the node's and the server's side.

    Attributes:
        run: Names the run: its hash where it is known, else Flower's run id.
        run_hash: SHA-256 of the run's configuration, None where it is not known.
        app: SHA-256 of the app bundle, None where the gate cannot see it.
        kind: ``query``, ``train`` or ``evaluate``.
        round: The round, None outside of rounds.
    """

    run: str
    run_hash: str | None
    app: str | None
    kind: str
    round: int | None


@dataclass(frozen=True)
class Release:
    """What a reply holds.

    Attributes:
        bytes: Values, names and texts.
        tensors: How many tensors.
        sha256: Of the content; equal content has equal digests.
        norm: Euclidean length of the update, None without one.
        epsilon: What the run has spent of this site's privacy, as the reply states; None if not.
        delta: The same for delta.
        error: Whether it is an error.
    """

    bytes: int
    tensors: int
    sha256: str
    norm: float | None = None
    epsilon: float | None = None
    delta: float | None = None
    error: bool = False


def judged(policy: SitePolicy, kind: str, content: RecordDict) -> Release:
    """Returns what a reply's ``content`` holds, if every part of it may leave.

    Args:
        policy: A policy that names its tensors.
        kind: ``train`` replies may hold tensors, others numbers alone.
        content: The reply's records, of which nothing is believed.

    Raises:
        Denied: If anything may not leave.
    """
    allowed: dict[str, Mapping[str, Shape]] = {}
    if kind == "train" and policy.weights != "backbone" and policy.buffers != "backbone":
        allowed = {ARRAYS: policy.weights, BUFFERS: policy.buffers}
    digest, n_bytes, n_tensors, squares = sha256(), 0, 0, 0.0
    for field in sorted(set(content) - {METRICS}):
        record = content[field]
        if not isinstance(record, ArrayRecord) or field not in allowed:
            raise Denied("a record that is not on the allow-list", f"{field!r:.200}")
        for name, data, values in _allowed(field, record, allowed[field]):
            digest.update(canonical([field, name]))
            digest.update(data)
            n_bytes, n_tensors = n_bytes + len(name) + len(data), n_tensors + 1
            squares += _sum_of_squares(field, name, values) if field == ARRAYS else 0.0
    numbers = _numbers(policy, content.get(METRICS))
    digest.update(canonical(numbers))
    norm = math.sqrt(squares) if ARRAYS in content else None
    if norm is not None and policy.max_norm is not None and not norm <= policy.max_norm:
        raise Denied("an update longer than max_norm", f"{norm:.6g} > {policy.max_norm:g}")
    return Release(
        n_bytes + sum(len(name) + 8 for name in numbers),
        n_tensors,
        digest.hexdigest(),
        norm,
        _stated(numbers, EPSILON),
        _stated(numbers, DELTA),
    )


def admit(policy: SitePolicy, request: Request) -> None:
    """Refuses runs, apps and kinds of messages that the policy does not name.

    Raises:
        Denied: If it names others.
    """
    if request.kind not in policy.messages:
        raise Denied("a kind of message that is not answered", f"{request.kind!r:.60}")
    for field, found in (("runs", request.run_hash), ("apps", request.app)):
        names: tuple[str, ...] | None = getattr(policy, field)
        if names is not None and found not in names:
            raise Denied(f"{field[:-1]} that is not on the allow-list", str(found))


def require_answer(message: Message, reply: Message) -> None:
    """Refuses a reply whose envelope is not that of an answer to ``message``.

    Raises:
        Denied: If it is another's.
    """
    asked, found = message.metadata, reply.metadata
    if (
        found.run_id != asked.run_id
        or found.dst_node_id != asked.src_node_id
        or found.reply_to_message_id != asked.message_id
        or found.message_type != asked.message_type
        or found.group_id != asked.group_id
    ):
        raise Denied("a reply that does not answer its message")


def _allowed(
    field: str, record: ArrayRecord, shapes: Mapping[str, Shape]
) -> Iterator[tuple[str, bytes, NDArray[Any]]]:
    """Yields name, bytes and values of each tensor; all of them must be on the list."""
    for name in sorted(record):
        if name not in shapes:
            raise Denied(f"a tensor that is not on the allow-list of {field}", f"{name!r:.200}")
        array, shape = record[name], tuple(shapes[name])
        data = array.data
        for kind in ("<f4",) if field == ARRAYS else ("<f4", "<i8"):
            dtype, header = np.dtype(kind), _header(kind, shape)
            if (
                array.stype == "numpy.ndarray"
                and array.dtype == dtype.name
                and tuple(array.shape) == shape
                and len(data) == len(header) + math.prod(shape) * dtype.itemsize
                and data.startswith(header)
            ):
                yield name, data, np.frombuffer(data, dtype, offset=len(header))
                break
        else:
            raise Denied(
                f"a tensor of {field} with another shape or type than allowed",
                f"{name}: needed {list(shape)}, found {array.dtype!r:.40} {array.shape!r:.80}",
            )


@lru_cache(maxsize=4096)
def _header(kind: str, shape: Shape) -> bytes:
    """The bytes before the values when numpy saves such an array."""
    stream = io.BytesIO()
    description = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, description)
    return stream.getvalue()


def _sum_of_squares(field: str, name: str, values: NDArray[Any]) -> float:
    total = float(np.square(values, dtype=np.float64).sum())
    if not math.isfinite(total):
        raise Denied("an update with NaN or infinity", f"{field}[{name}]")
    return total


def _numbers(policy: SitePolicy, record: object) -> dict[str, int | float]:
    """The single numbers of a reply's metrics."""
    if record is None:
        return {}
    if not isinstance(record, MetricRecord):
        raise Denied(
            "a record that is not on the allow-list", f"{METRICS}: {type(record).__name__}"
        )
    numbers: dict[str, int | float] = {}
    for name in sorted(record):
        value = record[name]
        if name not in policy.metrics:
            raise Denied("a metric that is not on the allow-list", f"{name!r:.200}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Denied("a metric that is no single number", name)
        if not abs(value) < 2**63:
            raise Denied("a metric that is not finite or too large", name)
        numbers[name] = value
    return numbers


def _stated(numbers: Mapping[str, int | float], name: str) -> float | None:
    return float(numbers[name]) if name in numbers else None


def require_budget(
    policy: SitePolicy,
    gone: Sequence[Mapping[str, Any]],
    request: Request,
    release: Release,
) -> None:
    """Refuses what would go beyond the bytes, replies or epsilon that are left.

    Args:
        policy: The budgets.
        gone: Receipts of the releases so far.
        request: What is answered now.
        release: What would leave now.

    Raises:
        Denied: If a budget does not cover it.
    """
    budget, same = policy.byte_budget, [b for b in gone if b.get("run") == request.run]
    for rule, limit, spent in (
        ("per_reply", budget.per_reply, 0),
        ("per_run", budget.per_run, sum(int(b["bytes"]) for b in same)),
        ("in_all", budget.in_all, sum(int(b["bytes"]) for b in gone)),
    ):
        if limit is not None and spent + release.bytes > limit:
            raise Denied(
                f"byte_budget.{rule} is spent", f"{spent} + {release.bytes} > {limit} bytes"
            )
    if request.kind != "train" or release.error:
        return
    n_replies = sum(1 for b in same if b["kind"] == "train" and not b["error"])
    if policy.max_replies_per_run is not None and n_replies >= policy.max_replies_per_run:
        raise Denied("max_replies_per_run is reached", str(n_replies))
    if policy.privacy is not None:
        _require_privacy(policy, gone, request, release)


def _require_privacy(
    policy: SitePolicy,
    gone: Sequence[Mapping[str, Any]],
    request: Request,
    release: Release,
) -> None:
    """Refuses an update without differential privacy, or one that the budget does not cover."""
    demand, spent = policy.privacy, {EPSILON: 0.0, DELTA: 0.0}
    if demand is None:
        return
    for name, limit in ((EPSILON, demand.max_epsilon), (DELTA, demand.max_delta)):
        stated: float | None = getattr(release, name)
        if stated is None or not stated >= 0 or (name == EPSILON and stated == 0):
            raise Denied("an update without the differential privacy demanded", f"{name}={stated}")
        account = request.run if demand.stated_for == "run" else ""
        by_account: dict[str, float] = {}
        for body in gone:
            key = str(body["run"]) if demand.stated_for == "run" else ""
            by_account[key] = max(by_account.get(key, 0.0), body.get(name) or 0.0)
        before = by_account.get(account, 0.0)
        if name == EPSILON and stated < before:
            raise Denied("a privacy account that went back", f"{name}: {stated:g} < {before:g}")
        by_account[account] = max(stated, before)
        spent[name] = math.fsum(by_account.values())
        if spent[name] > limit:
            raise Denied(f"the privacy budget is spent ({name})", f"{spent[name]:g} > {limit:g}")
