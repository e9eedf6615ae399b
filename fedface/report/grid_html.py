"""``report.html`` of a comparison grid: one file that opens without a network.

It is made of what the grid recorded; nothing is trained or measured anew. The one thing drawn is
the trigger of each attack, on rendered faces: no face of a data set and no embedding enters the
page. As in fedface/report/html.py every value is escaped, and a content security policy lets the
browser run the two scripts of this module and nothing else, nor load anything.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from fedface.report.bench import CLEAN, Bench, read_bench
from fedface.report.bench_figures import Figure, Worst
from fedface.report.curves import COLOURS, DASHES
from fedface.report.grid_cells import Cells, planned, read_cells, states, without_result
from fedface.report.grid_figures import Place, heat_maps, places, quantities
from fedface.report.grid_overview import FAILS, Overview, case, overviews
from fedface.report.grid_triggers import Picture, grouped, picture, sample_faces
from fedface.report.grid_verdict import setting, verdict
from fedface.report.html import NAME, differences, environments, plain, source_hash, template
from fedface.report.run_folder import RunFolderError, write_atomically
from fedface.report.sentences import percent
from fedface.report.tables import MISSING

MAX_LISTED = 100
"""Cells without a result that are listed one by one; the rest is counted."""


def write_grid_report(folder: Path) -> Path:
    """Writes ``report.html`` into the ``folder`` of a comparison grid; returns its path.

    Raises:
        RunFolderError: If there is no grid or it has no results.
    """
    written = folder / NAME
    write_atomically(written, render_grid_report(folder))
    return written


def render_grid_report(folder: Path) -> str:
    """Returns the report as one HTML document; the same recordings give the same text.

    Raises:
        RunFolderError: If there is no grid or it has no results.
    """
    grid, bench = _read_grid(folder), read_bench(folder)
    found = overviews(bench, Counter(cell[3] for cell in planned(grid)))
    defences = [o.defence for o in found]
    attacks = [CLEAN, *(a for a in bench.names("attack") if a != CLEAN)]
    cells = read_cells(folder, bench, grid, attacks, defences)
    reference = str(grid["reference"])
    recorded = [("the grid", _environment(folder)), *cells.environments]
    made_in = environments(entry for entry in recorded if entry[1])
    data = {
        "reference": defences.index(reference) if reference in defences else None,
        "attacks": [plain(a) for a in attacks],
        "defences": [plain(d) for d in defences],
        "heat": heat_maps(bench, defences, attacks),
        "state": states(bench, grid, attacks, defences),
        "quantities": {key: title for key, (title, _) in quantities(bench).items()},
        "clean": [_clean_place(bench, place) for place in places(bench)],
        "alphas": {"tar": bench.tar_alpha, "asr": bench.lift_alpha},
        "shown": "loss" if bench.lift_alpha is None else "lift",
        "cells": cells.data,
    }
    drawing = template("grid_report.js.j2", autoescape=False).render(colours=COLOURS, dashes=DASHES)
    scripts = {"plotly": get_plotlyjs(), "draw": drawing}
    pictures, own_faces = _pictures(folder, bench, grid, cells)
    return template("grid_report.html.j2", autoescape=True).render(
        name=plain(grid["name"]),
        grid=data,
        verdict=[plain(s, 2000) for s in verdict(bench, found, reference)],
        setting=plain(setting(bench, grid, cells.people), 2000),
        fails=f"{FAILS:.0%}",
        columns=_COLUMNS,
        ranking=[_row(bench, overview, overview.defence == reference) for overview in found],
        places=[_title(bench, place) for place in places(bench)],
        start=_start(bench, found, attacks),
        pictures=pictures,
        own_faces=own_faces,
        every=cells.every,
        without=list(without_result(bench, grid, cells)),
        max_listed=MAX_LISTED,
        settings=yaml.safe_dump(grid, sort_keys=False, allow_unicode=True),
        environments=made_in,
        differences=differences(made_in),
        hashes=[source_hash(script) for script in scripts.values()],
        **{title: Markup(script) for title, script in scripts.items()},
    )


def _read_grid(folder: Path) -> dict[str, Any]:
    path = folder / "grid.yaml"
    if not path.is_file():
        raise RunFolderError(
            f"{folder}: needed the folder of a comparison grid, found no {path.name}"
        )
    return dict(yaml.safe_load(path.read_text()))


def _environment(folder: Path) -> dict[str, Any]:
    path = folder / "environment.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def _pictures(
    folder: Path, bench: Bench, grid: Mapping[str, Any], cells: Cells
) -> tuple[list[Picture], bool]:
    """The triggers of the grid's attacks, and whether its own faces are rendered ones."""
    size = None if cells.people is None else cells.people.get("image_size")
    faces, own = sample_faces(grid["base"].get("data", {}).get("faces", {}), size)
    shares = grid["malicious_shares"]
    shown = []
    for name, settings in grid["attacks"].items():
        runs = sorted(bench.select(attack=name), key=lambda record: not record["reference"])
        cell = folder / runs[0]["folder"] if runs else None
        whole = {"malicious_share": shares[0], **settings}
        shown.append(picture(plain(name), whole, faces, cell))
    return grouped(shown), own


_COLUMNS = (
    ("rank", "by the worst case"),
    ("defence", ""),
    ("worst damage", "in"),
    ("mean damage", "rank by mean"),
    ("mean ASR lift", ""),
    ("worst ASR lift", "under"),
    ("TAR loss, no attack", ""),
    ("mean TAR loss", "worst"),
    ("honest excluded", "without attack"),
    ("malicious excluded", ""),
    ("time of a round", "seconds"),
    ("cells", ""),
)
"""Title and second line of the ranking's columns."""


def _row(
    bench: Bench, o: Overview, is_reference: bool
) -> list[tuple[str, str, float | str | None]]:
    """(text, small print, what to sort by) of each column."""
    worst = None if o.rank is None else o.rank.worst
    mean = None if o.rank is None else o.rank.mean
    worst_loss = o.tar_loss_worst
    by_mean = MISSING if o.rank is None else f"{o.rank.by_mean}."
    clean = MISSING if o.clean_exclusion is None else f"{o.clean_exclusion.value:.3f}"
    slow = MISSING if o.slowdown is None else f"x {o.slowdown:.2f}"
    return [
        (MISSING, "", None) if o.rank is None else (str(o.rank.by_worst), "", o.rank.by_worst),
        (plain(o.defence), "no defence" if is_reference else "", plain(o.defence)),
        _cell(worst and worst.figure, _under(bench, worst)),
        _cell(mean, by_mean),
        _cell(o.lift),
        _cell(o.lift_worst and o.lift_worst.figure, _under(bench, o.lift_worst)),
        _cell(o.clean_tar_loss),
        _cell(o.tar_loss, MISSING if worst_loss is None else f"{worst_loss.figure.value:z.3f}"),
        _cell(o.fpr, clean),
        _cell(o.tpr),
        (slow, "" if o.seconds is None else f"{o.seconds:.1f} s", o.slowdown),
        (f"{o.n_complete}/{o.n_cells}", "", o.n_complete),
    ]


def _cell(figure: Figure | None, small: str = "") -> tuple[str, str, float | None]:
    if figure is None:
        return MISSING, small, None
    return f"{figure.value:z.3f}", small, figure.value


def _under(bench: Bench, worst: Worst | None) -> str:
    return "" if worst is None else plain(case(bench, worst.where))


def _title(bench: Bench, place: Place) -> str:
    partition, share = place
    return plain(f"{partition}, {percent(share)} malicious") if share else plain(partition)


def _clean_place(bench: Bench, place: Place) -> int:
    """The place under which the clean cells of this one are kept: its partition's first."""
    return [partition for partition, _ in places(bench)].index(place[0])


def _start(bench: Bench, found: Sequence[Overview], attacks: Sequence[str]) -> dict[str, int]:
    """What is selected at first: the best defence's worst case."""
    worst = found[0].lift_worst if found else None
    for index, (partition, share) in enumerate(places(bench)):
        for number, attack in enumerate(attacks):
            if worst is not None and worst.where == f"{partition}/{share:g}/{attack}":
                return {"place": index, "attack": number, "defence": 0}
    return {"place": 0, "attack": min(1, len(attacks) - 1), "defence": 0}
