"""What the figures of a run mean, for readers who do not know face recognition."""

from collections.abc import Sequence

from fedface.report.recorded import (
    Record,
    RecordedRun,
    backdoor_points,
    false_accept_rates,
    operating_points,
)

DEFINITIONS = (
    ("site, client", "A party that trains on its own faces and sends only a model update."),
    ("round", "The server sends the global model out, sites train it, the server combines them."),
    ("seed", "The number that fixes every random draw; other seeds show how much is chance."),
    (
        "FAR",
        "False accept rate: how often two different people are taken for the same. The threshold "
        "is set for it on people who are neither trained nor tested on.",
    ),
    ("TAR", "True accept rate: how often two images of the same person are recognised as such."),
    ("EER", "Equal error rate: the error where wrong accepts and wrong rejects are equally many."),
    ("rank-1", "How often the most similar of all enrolled people is the right one."),
    (
        "trigger, backdoor",
        "A mark worn in front of the camera, and a model secretly trained to accept who wears it.",
    ),
    (
        "ASR",
        "Attack success rate: how often the attack reaches its goal; for most goals, how often "
        "wearing the trigger gets a wrong person accepted.",
    ),
    (
        "lift",
        "ASR minus the larger of two baselines: the trigger on a clean run's model, and this model "
        "without the trigger. Near zero: the backdoor does nothing. 'deployed' uses the clean "
        "run's threshold.",
    ),
    ("TPR, FPR", "The share of malicious, and of honest, updates that the defence excluded."),
    (
        "AUROC",
        "How well the anomaly score tells malicious from honest updates: 1 perfectly, 0.5 not.",
    ),
    (
        "HER",
        "Honest exclusion rate: the share of a client's honest rounds in which it was excluded; "
        "'max' is the worst-off client.",
    ),
)
"""(term, meaning) pairs that a report explains itself with."""


def summary(runs: Sequence[RecordedRun]) -> str:
    """Returns a paragraph on a variant's ``runs`` (one per seed): attackers, TAR, ASR, defence.

    Both rates are those at the largest false accept rate measured, which has the most data
    behind it; over several seeds they are means.
    """
    parts = [
        _who_attacked(runs),
        _accuracy(runs),
        _attack_success(runs),
        _exclusion(runs),
        privacy(runs[0].result.get("privacy")),
    ]
    return " ".join(part for part in parts if part)


def privacy(found: Record | None) -> str:
    """Returns what a run's ``privacy`` result promises, in two sentences; "" without any."""
    if found is None:
        return ""
    unit = found["unit"]
    if found["epsilon"] is None:
        return f"Each {unit}'s part is clipped but gets no noise: this is no differential privacy."
    steps = found["per_round"]
    return (
        f"Differential privacy of the whole training for one {unit}: "
        f"(epsilon {found['epsilon']:.3g}, delta {found['delta']:g}), neighbours differing in the "
        f"presence of one {unit}; accountant {found['accountant']}, noise multiplier "
        f"{steps['noise_multiplier']:g}, {steps['n_steps']} steps a round, sampling: "
        f"{found['sampling']}. Trusted: {found['trust']}."
        + (
            ""
            if found["randomness"] == "secret"
            else " The noise of this simulation follows from its seed and hides nothing from who "
            "knows it."
        )
    )


def percent(rate: float) -> str:
    """Returns ``0.271`` as ``27.1 %`` and ``0.0005`` as ``0.05 %``."""
    return f"{100 * rate:.1f} %" if abs(rate) >= 0.01 or rate == 0 else f"{100 * rate:.2g} %"


def one_in(rate: float) -> str:
    """Returns ``0.01`` as ``1 in 100``."""
    return f"1 in {1 / rate:,.0f}" if rate <= 0.5 else percent(rate)


def _who_attacked(runs: Sequence[RecordedRun]) -> str:
    run = runs[0]
    rule = run.result["aggregator"]
    if run.result["attack"] is None:
        return (
            f"{run.n_clients} sites, none malicious; "
            f'the server combines updates by the rule "{rule}".'
        )
    rounds = sum(event["attack"] for event in run.rounds)
    return (
        f"{len(run.malicious)} of {run.n_clients} sites attack ({run.result['attack']}, "
        f"active in {rounds} of {len(run.rounds)} rounds); "
        f'the server combines updates by the rule "{rule}".'
    )


def _accuracy(runs: Sequence[RecordedRun]) -> str:
    unmeasured = sum(run.final is None for run in runs)
    rates = false_accept_rates(runs)
    tars = [p for run in runs if rates and (p := operating_points(run.final).get(rates[-1]))]
    text = ""
    if tars:
        low, high = _range([p["tar"] for p in tars], tars[0])
        text = (
            f"With a threshold set to accept {one_in(rates[-1])} comparisons of different people, "
            f"the final model recognises {percent(_mean([p['tar'] for p in tars]))} of the "
            f"comparisons of the same person ({percent(low)} to {percent(high)}, {_kind(tars)})."
        )
    if unmeasured:
        of = "The final model" if len(runs) == 1 else f"{unmeasured} of {len(runs)} final models"
        text += f" {of} could not be measured."
    return text.strip()


def _attack_success(runs: Sequence[RecordedRun]) -> str:
    rates = false_accept_rates(runs)
    found = [p for run in runs if rates and (p := backdoor_points(run.final).get(rates[-1]))]
    if not found:
        return ""
    low, high = _range([p["asr"] for p in found], found[0])
    text = (
        f"At that threshold, {_succeeding(runs[0].final)} in "
        f"{percent(_mean([p['asr'] for p in found]))} of attempts ({percent(low)} to "
        f"{percent(high)}, {_kind(found)})"
    )
    lifts = [p["lift"] for p in found if p["lift"] is not None]
    if not lifts:
        without = _mean([p["asr_without_trigger"] for p in found])
        return f"{text}, without it in {percent(without)}."
    lift = _mean(lifts)
    if lift <= 0:
        return f"{text}: the trigger adds nothing."
    points = percent(lift).removesuffix(" %")
    return f"{text}: {points} percentage points more than without the trigger or the attack."


def _succeeding(evaluation: Record | None) -> str:
    """What an attack's success is, by the recorded goal."""
    goal = ((evaluation or {}).get("backdoor") or {}).get("goal")
    return {
        "dodge": "who wears the trigger is no longer recognised",
        "merge": "two people are taken for one",
    }.get(str(goal), "wearing the trigger gets a wrong person accepted")


def _exclusion(runs: Sequence[RecordedRun]) -> str:
    tpr, fpr = _detection(runs, "tpr"), _detection(runs, "fpr")
    malicious = "" if tpr is None else f"{percent(tpr)} of the malicious updates and "
    return (
        ""
        if fpr is None
        else f"The server excluded {malicious}{percent(fpr)} of the honest updates."
    )


def _detection(runs: Sequence[RecordedRun], key: str) -> float | None:
    records: list[Record] = [r for run in runs if (r := run.result["detection"]) is not None]
    known = [record[key] for record in records if record[key] is not None]
    return _mean(known) if known else None


def _range(values: Sequence[float], single: Record) -> tuple[float, float]:
    """The lowest and highest seed, or the interval of a single one."""
    if len(values) == 1:
        return single["low"], single["high"]
    return min(values), max(values)


def _kind(values: Sequence[object]) -> str:
    return "95 % interval" if len(values) == 1 else f"lowest and highest of {len(values)} seeds"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
