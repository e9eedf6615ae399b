"""``model_card.md``: what a run's model is, how it was made, what was measured and what was not.

Made of recorded results only; it names no person. Headings follow Mitchell et al., "Model Cards for
Model Reporting", FAccT 2019 (https://arxiv.org/abs/1810.03993), as far as a run can fill them.
"""

from pathlib import Path
from typing import Any

from fedface.report.html import main_packages, plain, template
from fedface.report.recorded import RecordedRun, backdoor_points, operating_points, read_run
from fedface.report.run_folder import RunFolderError, write_atomically
from fedface.report.sentences import percent, privacy, summary

NAME = "model_card.md"

SOURCES = {
    "renderer": (
        "faces drawn by a program: they show nobody, and figures on them say nothing about people"
    ),
    "lfw": (
        "Labeled Faces in the Wild, without landmark alignment: figures differ from published ones"
    ),
    "olivetti": "the Olivetti faces: the same 40 people as in ORL / AT&T",
    "folder": "a folder of aligned face images",
    "insightface_rec": "an InsightFace record file",
}
"""What each kind of data is, where a reader needs to know."""


def write_model_card(path: Path) -> Path:
    """Writes ``model_card.md`` into the folder ``path`` of a complete run; returns its path.

    Raises:
        RunFolderError: If there is no run, or it is not complete.
    """
    written = path / NAME
    write_atomically(written, render_model_card(read_run(path)))
    return written


def render_model_card(run: RecordedRun) -> str:
    """Returns the model card in Markdown; the same run gives the same text.

    Raises:
        RunFolderError: If the configuration lacks a section of a run.
    """
    try:
        context = _context(run)
    except KeyError as error:
        raise RunFolderError(f"{run.path}: needed the recorded field {error}, found none") from None
    return template("model_card.md.j2", autoescape=False).render(context)


def _context(run: RecordedRun) -> dict[str, Any]:
    """What the template is filled with."""
    config, result, final = run.config, run.result, run.final
    deployed = backdoor_points(final, "deployed")
    return {
        "title": run.title,
        "config": config,
        "result": result,
        "environment": run.environment,
        "versions": main_packages(run.environment),
        "data": result.get("data"),
        "source": SOURCES.get(config["data"]["faces"]["name"], "as the loader of this name reads"),
        "source_name": _source_name(config["data"]["faces"]),
        "backbone": _settings(config["model"]["backbone"]),
        "head": _settings(config["model"]["head"]),
        "training": _settings(config["training"]),
        "aggregator": _settings(config["aggregator"]),
        "attack": None if result["attack"] is None else _settings(config["attack"]),
        "malicious": run.malicious,
        "summary": summary([run]),
        "private": result.get("privacy"),
        "privacy": privacy(result.get("privacy")),
        "final": final,
        "failed": plain((result["evaluation"] or {}).get("failed", "no evaluation was recorded")),
        "points": [point for _, point in sorted(operating_points(final).items())],
        "refused": [] if final is None else final["verification"]["refused"],
        "attacks": [
            ("own", backdoor_points(final)),
            *([("the clean run's", deployed)] if deployed else []),
        ],
        "percent": percent,
    }


def _source_name(faces: dict[str, Any]) -> str:
    """The loader's name and, for files, the last part of their path."""
    where = faces.get("root") or faces.get("path")
    return faces["name"] if where is None else f"{faces['name']} ({plain(Path(where).name)})"


def _settings(section: dict[str, Any]) -> str:
    """A section on one line: the method's name, then ``field=value`` for what is set."""
    fields = [
        f"{key}={_value(value)}"
        for key, value in section.items()
        if key != "name" and value is not None
    ]
    return ", ".join([*([str(section["name"])] if "name" in section else []), *fields])


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + _settings(value) + "}"
    return plain(value).replace("`", "'")
