"""What the parties of a vertical federation read in messages, and how they reply."""

import hashlib

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

START = hashlib.sha256(b"start").hexdigest()
"""The transcript of a party that has acted on no message."""


def round_of(message: Message) -> int:
    """Returns the round of a message."""
    return int(str(message.content.config_records["config"]["server-round"]))


def continued(transcript: str, message: Message) -> str:
    """Returns the transcript after ``message``: a digest of it and of everything before."""
    digest = hashlib.sha256(f"{transcript} {message.metadata.message_type}".encode())
    for name in sorted(message.content):
        record = message.content[name]
        if isinstance(record, ArrayRecord):
            for key in sorted(record):
                values = record[key].numpy()
                digest.update(f"{name} {key} {values.dtype} {values.shape}".encode())
                digest.update(np.ascontiguousarray(values).data)
        elif isinstance(record, ConfigRecord):
            digest.update(repr(sorted(record.items())).encode())
    return digest.hexdigest()


def reply_to(message: Message, **records: ArrayRecord | MetricRecord | ConfigRecord) -> Message:
    """Returns a reply to ``message`` that holds ``records``."""
    return Message(RecordDict(dict(records)), reply_to=message)
