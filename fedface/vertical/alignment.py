"""Aligns records over parties by keyed hashes of their ids.

The passive and active parties agree on a secret key outside the federation and send HMAC-SHA256
(RFC 2104) of their record ids, never the ids. Equal ids give equal tokens; what all parties sent is
the set of aligned records, in the order of the tokens, which tells nothing of the ids' order.

**What it protects.** Whoever sees the tokens without the key (the server when it is no party, a
log, a tapped line) cannot tell an id from a token, nor test whether a guessed id is there.

**What it does not protect.** Every holder of the key can: ids come from small sets (names, patient
numbers), so a party that knows the key hashes all guesses and finds which of them another party
sent, also outside the intersection. It hides ids from outsiders, not from partners; private set
intersection (PSI) would hide what lies outside the intersection from partners too. Sizes are seen
by all, and the same key in two runs links their records: agree on a new one for each.
"""

import hashlib
import hmac
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 16
"""The shortest key accepted; ``secrets.token_bytes(32)`` makes a good one."""


def hashed(record_ids: Sequence[str], key: bytes) -> tuple[str, ...]:
    """Returns the token of each id, 64 hexadecimal digits, in the order given.

    Ids are compared exactly, as UTF-8: agree on a spelling first.

    Args:
        record_ids: One party's ids, each once and not empty.
        key: The secret that the parties share.

    Raises:
        ValueError: If the key is short, or an id is empty or stands twice (named).
    """
    if len(key) < KEY_BYTES:
        raise ValueError(f"key needs at least {KEY_BYTES} bytes, got {len(key)}")
    if "" in record_ids:
        raise ValueError(f"record ids need text, got '' at place {list(record_ids).index('')}")
    twice = _twice(record_ids)
    if twice:
        raise ValueError(
            f"record ids need to be unique, got {len(twice)} that stand twice, "
            f"the first is {twice[0]!r}"
        )
    return tuple(hmac.new(key, i.encode(), hashlib.sha256).hexdigest() for i in record_ids)


def intersection(tokens: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Returns the tokens that every party has, sorted: the aligned records.

    Args:
        tokens: Party name -> its tokens, at least one party.

    Raises:
        ValueError: If there is no party, a party sent something that is no token or one twice
            (names the party), or nothing is shared.
    """
    if not tokens:
        raise ValueError("alignment needs at least one party, got none")
    for party, own in tokens.items():
        wrong = [t for t in own if not _is_token(t)]
        if wrong:
            raise ValueError(
                f"party {party} needs to send HMAC-SHA256 tokens of 64 lower-case hexadecimal "
                f"digits, got {len(wrong)} others, the first is {wrong[0][:80]!r}"
            )
        twice = _twice(own)
        if twice:
            raise ValueError(f"party {party} needs to send each token once, got {twice[0]} twice")
    shared = set.intersection(*(set(own) for own in tokens.values()))
    if not shared:
        sizes = ", ".join(f"{party} has {len(own)}" for party, own in tokens.items())
        raise ValueError(
            f"alignment needs records that all parties share, got none ({sizes}): "
            "do they use one key and one spelling?"
        )
    return tuple(sorted(shared))


def places(party: str, own: Sequence[str], asked: Sequence[str]) -> NDArray[np.int64]:
    """Returns where each ``asked`` token lies among a party's ``own``.

    Args:
        party: The party's name, for the message.
        own: Its tokens, in the order of its records.
        asked: Tokens in the order wanted.

    Returns:
        ``(len(asked),)`` indices into the party's records.

    Raises:
        ValueError: If a token is unknown to the party; names the party and the first such token.
    """
    index = {token: place for place, token in enumerate(own)}
    unknown = [token for token in asked if token not in index]
    if unknown:
        raise ValueError(
            f"party {party} needs record ids that it holds, got {len(unknown)} unknown, "
            f"the first is {unknown[0][:80]!r}"
        )
    return np.array([index[token] for token in asked], np.int64)


def _twice(values: Iterable[str]) -> list[str]:
    return [value for value, count in Counter(values).items() if count > 1]


def _is_token(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")
