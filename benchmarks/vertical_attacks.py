"""Attacks on a vertical federation in both directions, with and without protection.

    python benchmarks/vertical_attacks.py [--size full] [--seeds 0 1 2] [--epsilons 1 4 16]
        [--only NAME ...] [--output FILE.json]

Each row is a federation of its own, trained in this process under one protection; the columns are
what attacks get out of it, and all protections of a seed see the same faces and the same attacker.

The active party attacks the passive party's features. Inversion by optimisation goes through the
true bottom model (``pixels`` and ``eigenfaces``: the prior) or through a shadow of it (``shadow``,
with eigenfaces); the other attack is a ``decoder``. All but the first learn from the shadow people,
whose photographs are the attacker's own. Cells show SSIM and the identity lift over a flat grey
picture with its 95 % interval. A third party attacks membership: which people was the bottom model
trained on? The area under the ROC curve; half of the people are known to the attacker, in turns.

The passive party attacks the active party's labels: by the length of gradients (a federation of its
own, in which one person in six is on a watch list; area under the ROC curve), by their direction
(two known records per person) and by model completion (the same two), of the whole bottom model or
with a new head alone, beside completion of an untrained bottom model. Cells show the share of
people named rightly among the other records. The JSON file grows row by row.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from time import perf_counter
from typing import Any

import numpy as np
import torch
from measuring import describe_machine, write_json
from torch import Tensor
from vertical_world import (
    SIZES,
    Federation,
    Protection,
    Size,
    World,
    add_world_arguments,
    gallery,
    labels_of,
    recogniser,
    train,
    world_of,
)

from fedface.attacks.inversion import (
    Decoder,
    FeatureInversion,
    GradientDirection,
    GradientNorm,
    Knowledge,
    Membership,
    ModelCompletion,
    Optimisation,
)
from fedface.attacks.inversion.bottom_model import ShadowBottom
from fedface.attacks.inversion.image_prior import Eigenfaces
from fedface.evaluation.leakage import (
    Embedder,
    inversion_leakage,
    label_leakage,
    leak_auc,
)
from fedface.random import numpy_stream, stream
from fedface.report.tables import MISSING, Table

N_KNOWN = 2
"""Records per person whose label the passive party knows."""

Found = dict[str, Any]
"""What all attacks found under one protection and seed."""


def protections(epsilons: Sequence[float]) -> tuple[Protection, ...]:
    """Returns every protection of the table, the unprotected federation first."""
    noisy = [
        protection
        for epsilon in epsilons
        for protection in (
            Protection(f"clip + noise, epsilon {epsilon:g}", epsilon),
            Protection(f"AFE, epsilon {epsilon:g}", epsilon, adaptive=True),
            Protection(f"AFE frozen, epsilon {epsilon:g}", epsilon, adaptive=True, frozen=True),
        )
    ]
    return (
        Protection("none"),
        Protection("none, gradients bounded", max_gradient_norm=1e-3),
        Protection("AFE without noise", adaptive=True, clip=1.0),
        *noisy,
    )


FEATURES = ("pixels", "eigenfaces", "shadow", "decoder")
"""The attacks on features, by column."""


def feature_attacks(size: Size, clip: float | None, sigma: float) -> dict[str, FeatureInversion]:
    """Returns the attacks of :data:`FEATURES` for an attacker who knows the mechanism.

    Under noise the eigenface prior gets the weight that makes the attack the posterior's mode:
    n_components / dim times the noise's share of an embedding's mean square.
    """
    steps, prior = size.inversion_steps, Eigenfaces()
    if clip is not None:
        share = sigma**2 / (clip**2 / size.dim + sigma**2)
        weight = prior.weight + prior.n_components / size.dim * share
        prior = prior.model_copy(update={"weight": weight})
    shadow = ShadowBottom(epochs=size.passes)
    attacks = (
        Optimisation(steps=steps),
        Optimisation(steps=steps, prior=prior),
        Optimisation(steps=steps, prior=prior, bottom=shadow),
        Decoder(epochs=size.passes, halve_every=max(1, size.passes // 5)),
    )
    return dict(zip(FEATURES, attacks, strict=True))


def attack_features(
    world: World, federation: Federation, size: Size, judge: Embedder, seed: int
) -> Found:
    """Returns what each inversion gets of the later photographs of enrolled people."""
    targets, shadow = world.records("enrolled", later=True), world.records("shadow")
    knowledge = Knowledge(
        size.pixels,
        federation.encode,
        world.other[shadow],
        federation.released(world, shadow, seed),
    )
    observed = federation.released(world, targets, seed)
    known_people = gallery(world, judge)
    found = {}
    release = federation.passive.settings.release
    for name, attack in feature_attacks(size, release.bound, release.noise).items():
        images = attack(observed, knowledge, stream(seed, "attack", name)).images
        found[name] = asdict(
            inversion_leakage(
                images,
                world.other[targets],
                world.people[targets].numpy(),
                known_people,
                judge,
                numpy_stream(seed, "bootstrap", name),
            )
        )
    return found


def attack_membership(world: World, federation: Federation, seed: int) -> float:
    """Returns the area under the ROC curve, mean over which half of the people is known."""
    members, strangers = world.records("enrolled", later=False), world.records("stranger", False)
    records = torch.cat([members, strangers])
    z = torch.cat([federation.released(world, r, seed) for r in (members, strangers)])
    people = world.people[records].numpy()
    everybody = np.unique(people)
    is_member = np.isin(everybody, world.people[members].numpy())
    areas = []
    for half in (0, 1):
        known = np.arange(half, len(everybody), 2)
        others = np.setdiff1d(np.arange(len(everybody)), known)
        odds = Membership()(z, people, known, is_member[known])
        areas.append(leak_auc(odds[others], is_member[others]))
    return mean(areas)


def attack_labels(
    world: World, federation: Federation, size: Size, protection: Protection, seed: int
) -> Found:
    """Returns what the passive party gets of the labels; None where no gradient comes back."""
    trained = world.records("enrolled", later=False)
    labels = labels_of(world, "people", size)[trained]
    known = _first_of_each(labels, N_KNOWN)
    hidden = np.setdiff1d(np.arange(len(trained)), known.numpy())

    def leaked(scores: Tensor) -> Found:
        named = scores.argmax(1).numpy()
        return asdict(label_leakage(named[hidden], labels.numpy()[hidden]))

    completion = ModelCompletion(
        epochs=1,
        steps_per_epoch=size.completion_steps,
        averaging=0.999 if size.completion_steps > 5000 else 0.98,
    )
    views = world.other[trained]
    head_alone = completion.model_copy(update={"freeze_bottom": True})
    found: Found = {
        name: leaked(
            complete(bottom, size.dim, views, known, labels[known], stream(seed, "completion"))
        )
        for name, complete, bottom in (
            ("completion", completion, federation.passive.bottom),
            ("head alone", head_alone, federation.passive.bottom),
            ("untrained", completion, federation.initial),
        )
    }
    found["direction"] = found["norm"] = None
    if federation.gradients is not None:
        scores = GradientDirection()(federation.gradients, known, labels[known])
        found["direction"] = leaked(scores)
        listed = train(world, size, protection, seed, "watch_list").gradients
        if listed is not None:
            on_list = labels_of(world, "watch_list", size)[trained].numpy() == 1
            found["norm"] = leak_auc(GradientNorm()(listed).numpy(), on_list)
    return found


def attack(world: World, size: Size, protection: Protection, judge: Embedder, seed: int) -> Found:
    """Trains under ``protection`` and returns what all attacks find."""
    federation = train(world, size, protection, seed)
    release = federation.passive.settings.release
    return {
        "sigma": release.noise,
        "clip": release.bound,
        "statement": release.statement(),
        "accuracy": federation.accuracy,
        "features": attack_features(world, federation, size, judge, seed),
        "membership": attack_membership(world, federation, seed),
        "labels": attack_labels(world, federation, size, protection, seed),
    }


def table(found: dict[str, list[Found]]) -> Table:
    """Returns one row per protection, means over the seeds."""
    columns = ("protection", "sigma / C", "accuracy", *FEATURES, "membership", "norm")
    columns += ("direction", "completion", "head alone", "untrained")
    rows = []
    for name, seeds in found.items():
        clip = seeds[0]["clip"]
        cells = [name, MISSING if clip is None else f"{seeds[0]['sigma'] / clip:.2f}"]
        cells.append(f"{mean(s['accuracy'] for s in seeds):.2f}")
        cells += [
            _inversion_cell([s["features"][attack_name] for s in seeds]) for attack_name in FEATURES
        ]
        cells.append(f"{mean(s['membership'] for s in seeds):.2f}")
        norms = [s["labels"]["norm"] for s in seeds]
        cells.append(MISSING if None in norms else f"{mean(norms):.2f}")
        for attack_name in ("direction", "completion", "head alone", "untrained"):
            shares = [s["labels"][attack_name] for s in seeds]
            shown = None not in shares
            cells.append(f"{mean(s['accuracy'] for s in shares):.2f}" if shown else MISSING)
        rows.append(tuple(cells))
    return Table(columns, tuple(rows))


def baselines(found: dict[str, list[Found]]) -> str:
    """Returns the sentence with what nobody needs an attack for."""
    every = [s for seeds in found.values() for s in seeds]
    cells = [s["features"]["decoder"] for s in every]
    labels = [s["labels"]["completion"] for s in every]
    return (
        f"A flat grey picture: SSIM {mean(c['grey_ssim'] for c in cells):.2f}, rank one "
        f"{mean(c['grey_rank_one'] for c in cells):.2f}; the true pictures: rank one "
        f"{mean(c['true_rank_one'] for c in cells):.2f}; a constant label: "
        f"{mean(c['majority'] for c in labels):.2f}; areas under the curve: 0.50."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_world_arguments(parser)
    parser.add_argument("--only", nargs="+", help="rows whose name contains one of these texts")
    parser.add_argument("--output", type=Path, help="JSON file for all figures")
    chosen = parser.parse_args(arguments)
    size, machine = SIZES[chosen.size], describe_machine()
    wanted = [
        p
        for p in protections(chosen.epsilons)
        if chosen.only is None or any(text in p.name for text in chosen.only)
    ]
    if not wanted:
        parser.error(f"--only {' '.join(chosen.only)} names no row")
    found: dict[str, list[Found]] = {p.name: [] for p in wanted}
    settings = {"size": asdict(size), "seeds": chosen.seeds, "epsilons": chosen.epsilons}
    for seed in chosen.seeds:
        world = world_of(size, seed)
        judge = recogniser(world, seed, size.passes)
        for protection in wanted:
            start = perf_counter()
            found[protection.name].append(attack(world, size, protection, judge, seed))
            took = perf_counter() - start
            sys.stderr.write(f"seed {seed}, {protection.name}: {took:.0f} s\n")
            if chosen.output is not None:
                results = {"protections": {p.name: asdict(p) for p in wanted}, "found": found}
                write_json(chosen.output, "vertical_attacks", machine, settings, results)
    sys.stdout.write(f"{table(found).markdown()}\n{baselines(found)}\n")


def _first_of_each(labels: Tensor, n: int) -> Tensor:
    """The first ``n`` places of every label, in order of the labels."""
    return torch.cat([(labels == k).nonzero().flatten()[:n] for k in torch.unique(labels)])


def _inversion_cell(seeds: Sequence[Found]) -> str:
    """SSIM and lift; of one seed with its interval, of several with the lowest and highest."""
    lifts = [s["lift"] for s in seeds]
    low, high = (min(lifts), max(lifts))
    if len(seeds) == 1:
        low, high = seeds[0]["lift_low"], seeds[0]["lift_high"]
    return f"{mean(s['ssim'] for s in seeds):.2f} / {mean(lifts):+.2f} ({low:+.2f}..{high:+.2f})"


if __name__ == "__main__":
    main()
