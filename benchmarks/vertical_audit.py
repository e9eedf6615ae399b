"""What a distinguisher proves of released embeddings, beside the epsilon that is accounted.

    python benchmarks/vertical_audit.py [--runs 50000] [--seeds 0 1 2] [--epsilons 1 4 16]
        [--size full] [--output FILE.json]

Each row releases a record many times and its neighbour as often, through the code that a passive
party uses, and asks the likelihood ratio which of the two it was; a run has all releases that the
budget pays for. ``opposite`` and ``absent`` are the worst replace-one and zero-out neighbours there
are; ``two faces`` are the two most distant photographs of a trained adaptive party. The bounds hold
with 99 % each; the accounted epsilon must not lie below them. The rows below the line are wrong on
purpose (too little noise, releases that nobody counted, a sensitivity of C called replace-one, no
clip), and the audit must find them out. The p-values are of the noise's scale: of the one claimed,
of 2/3 and of 3/2 of it.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import describe_machine, figure, write_json
from torch import Tensor
from vertical_world import SIZES, Protection, Size, add_world_arguments, train, world_of

from fedface.privacy import AnyRelease, EmbeddingRelease, UnclippedNoise
from fedface.privacy.audit import audit, distinguishing_scores
from fedface.privacy.noise_check import check_noise
from fedface.random import numpy_stream, stream
from fedface.report.tables import Table

DELTA, CONFIDENCE, DIM = 1e-5, 0.99, 32


@dataclass(frozen=True)
class Claim:
    """A release, what is said of it, and two neighbours.

    Attributes:
        name: For the table.
        release: The mechanism as it runs.
        epsilon: What is accounted, for these neighbours.
        n_releases: In a run.
        pair: ``(2, dim)`` embeddings of the record and its neighbour.
        is_wrong: Whether the claim is wrong on purpose.
    """

    name: str
    release: AnyRelease
    epsilon: float
    n_releases: int
    pair: Tensor
    is_wrong: bool = False


def claims(epsilon: float, faces: Tensor) -> list[Claim]:
    """Returns the claims to audit at one budget, right ones first."""
    opposite, absent = torch.zeros(2, DIM), torch.zeros(2, DIM)
    opposite[:, 0], absent[0, 0] = torch.tensor([1.0, -1.0]), 1.0
    found = []
    for n in (1, 10):
        release = EmbeddingRelease(epsilon=epsilon, n_releases=n)
        zero_out = release.cost(n, DELTA).zero_out
        found += [
            Claim("opposite", release, epsilon, n, opposite),
            Claim("absent", release, zero_out, n, absent),
            Claim("two faces", release, epsilon, n, faces),
        ]
    sigma = EmbeddingRelease(epsilon=epsilon, n_releases=1).noise
    half = EmbeddingRelease(epsilon=epsilon, n_releases=1, neighbour="zero_out")
    less = EmbeddingRelease(sigma=sigma * 2 / 3, n_releases=1)
    one = EmbeddingRelease(epsilon=epsilon, n_releases=1)
    return [
        *found,
        Claim("2/3 of the noise", less, epsilon, 1, opposite, is_wrong=True),
        Claim("10 releases, 1 counted", one, epsilon, 10, opposite, is_wrong=True),
        Claim("sensitivity C", half, epsilon, 1, opposite, is_wrong=True),
        Claim("no clip", UnclippedNoise(sigma=sigma), epsilon, 1, 3 * opposite, is_wrong=True),
    ]


def examine(claim: Claim, n_runs: int, seed: int) -> dict[str, Any]:
    """Returns the bounds and the p-values of one claim."""
    record, neighbour = claim.pair
    where = (claim.name, claim.n_releases, f"{claim.epsilon:.6g}")
    rng = stream(seed, "audited noise", *where)
    scores = distinguishing_scores(
        claim.release.release,
        record,
        neighbour,
        (record, neighbour),
        n_runs,
        claim.n_releases,
        rng,
    )
    found = audit(*scores, DELTA, numpy_stream(seed, "halves", *where), CONFIDENCE)
    h = record.expand(200, -1)
    residuals = claim.release.release(h, rng).double() - h
    sigma = claim.release.noise
    values = (sigma, sigma * 2 / 3, sigma * 3 / 2)
    return {
        **asdict(found),
        "accounted": claim.epsilon,
        "n_releases": claim.n_releases,
        "sigma": sigma,
        "distance": float((record - neighbour).norm()),
        "is_wrong": claim.is_wrong,
        "refuted": max(found.epsilon, found.epsilon_gaussian) > claim.epsilon,
        "scale_p_values": [check_noise(residuals, value).scale_p_value for value in values],
        "shape_p_value": check_noise(residuals, sigma).shape_p_value,
        "seed": seed,
    }


def distant_faces(size: Size, seed: int) -> Tensor:
    """Returns the embeddings ``(2, DIM)`` of the two most distant photographs, at C = 1."""
    world = world_of(size, seed)
    party = train(world, size, Protection("afe", adaptive=True, clip=1.0), seed).passive
    records = world.records("enrolled")
    with torch.no_grad():
        u = party.scale(party.bottom(world.other[records]))
    first, second = divmod(int(torch.cdist(u, u).argmax()), len(u))
    pair = torch.zeros(2, DIM)
    pair[:, : u.shape[1]] = u[[first, second]]
    return pair


def table(found: Sequence[dict[str, Any]]) -> Table:
    """Returns one row per claim and budget; of several seeds the largest bounds."""
    rows = []
    keys = dict.fromkeys((f["epsilon_asked"], f["name"], f["n_releases"]) for f in found)
    for asked, name, n_releases in sorted(keys, key=lambda k: _order(found, k)):
        own = [
            f
            for f in found
            if (f["epsilon_asked"], f["name"], f["n_releases"]) == (asked, name, n_releases)
        ]
        gaussian_bound = max(f["epsilon_gaussian"] for f in own)
        refuted = sum(f["refuted"] for f in own)
        p_values = (
            f"{min(f['scale_p_values'][0] for f in own):.2g}",
            f"{max(max(f['scale_p_values'][1:]) for f in own):.2g}",
        )
        rows.append(
            (
                name,
                str(n_releases),
                figure(own[0]["accounted"]),
                figure(max(f["epsilon"] for f in own)),
                figure(gaussian_bound),
                figure(own[0]["distance"]),
                f"{refuted}/{len(own)}",
                "yes" if own[0]["is_wrong"] else "no",
                *p_values,
            )
        )
    columns = ("neighbours", "releases", "accounted", "bound, any", "bound, Gaussian", "distance")
    columns += ("refuted", "wrong on purpose", "p of sigma, lowest", "p of 2/3 and 3/2, highest")
    return Table(columns, tuple(rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark; ends with status 1 if a right claim is refuted or a wrong one is not."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_world_arguments(parser)
    parser.add_argument("--runs", type=int, default=50000, help="with the record; as many without")
    parser.add_argument("--output", type=Path, help="JSON file for all figures")
    chosen = parser.parse_args(arguments)
    machine, found = describe_machine(), []
    for seed in chosen.seeds:
        faces = distant_faces(SIZES[chosen.size], seed)
        for epsilon in chosen.epsilons:
            found += [
                {"name": c.name, "epsilon_asked": epsilon, **examine(c, chosen.runs, seed)}
                for c in claims(epsilon, faces)
            ]
    sys.stdout.write(table(found).markdown())
    if chosen.output is not None:
        settings = {
            "size": asdict(SIZES[chosen.size]),
            "seeds": chosen.seeds,
            "epsilons": chosen.epsilons,
            "n_runs": chosen.runs,
            "delta": DELTA,
            "confidence": CONFIDENCE,
        }
        write_json(chosen.output, "vertical_audit", machine, settings, {"found": found})
    if any(f["refuted"] != f["is_wrong"] for f in found):
        sys.exit("a right claim was refuted, or a wrong one was not: see the table")


def _order(found: Sequence[dict[str, Any]], key: tuple[float, str, int]) -> tuple[Any, ...]:
    """Right claims first, then by budget and releases, in the order they were made."""
    own = next(f for f in found if (f["epsilon_asked"], f["name"], f["n_releases"]) == key)
    return (own["is_wrong"], key[0], key[2], found.index(own))


if __name__ == "__main__":
    main()
