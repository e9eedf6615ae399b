"""Writes the policy that fits one run: what its backbone is made of, and its hash."""

import json
from collections.abc import Mapping

from clients.policy import parse_toml
from simulations.build import build_backbone
from simulations.gates import shapes_of
from simulations.policies import run_hash
from simulations.schema import RunConfig

PIXELS = 112


def policy_text(config: RunConfig, buffers: bool = False, size: int | None = None) -> str:
    """Returns a TOML policy that lets out the updates of ``config``, and nothing else.

    Args:
        config: The run.
        buffers: Whether batch statistics and counters may leave, too.
        size: Pixels of the site's faces; None takes those of the run's own data, else 112.

    Raises:
        ValueError: If the backbone cannot read images of this size.
    """
    pixels = size or getattr(config.data.faces, "size", None) or PIXELS
    weights, statistics = shapes_of(build_backbone(config, pixels))
    lines = [
        "# What may leave this site. Nothing that is not named here leaves.",
        f"# Written for the run {config.name!r}; the site owns this file and may narrow it.",
        "version = 1",
        f'runs = ["{run_hash(config)}"]',
        "# max_norm = 10.0            # largest Euclidean length of an update",
        "# max_replies_per_run = 100",
        "",
        "# [byte_budget]",
        "# per_run = 1000000000",
        "",
        "# [privacy]                  # demands differential privacy, within a budget",
        "# max_epsilon = 8.0",
        "# max_delta = 1e-5",
        '# stated_for = "site"        # the account of a real site covers all of its runs',
        "",
        *_table("weights", weights),
    ]
    if buffers and statistics:
        lines += ["", *_table("buffers", statistics)]
    text = "\n".join(lines) + "\n"
    parse_toml(text, "policy")
    return text


def _table(name: str, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    return [f"[{name}]", *(f"{json.dumps(k)} = {list(v)}" for k, v in shapes.items())]
