"""The model that a run hands over: ``model.safetensors`` and, beside it, ``model.json``.

The weights are the backbone's parameters and buffers after the last round, with those parameters
that are never trained (a checkpoint leaves them out: the seed gives them). Heads are not in them:
a head's rows are templates of the people whom a site trained on. Nothing is pickled.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedface import parameters
from fedface.backbones import AnyBackbone
from fedface.config import Config, ConfigError, parse_config
from fedface.random import stream
from fedface.report.recorded import RecordedRun, operating_points, read_run
from fedface.report.run_folder import RunFolder, RunFolderError, write_atomically

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"


class Threshold(Config):
    """Two faces match if the cosine of their embeddings is at or above ``threshold``.

    Attributes:
        false_accept_rate: The share of different people accepted, on the calibration identities.
        threshold: A cosine.
    """

    false_accept_rate: Annotated[float, Field(gt=0, lt=1)]
    threshold: float


class ExportedModel(Config):
    """Everything needed to use the weights: ``model.json``.

    Attributes:
        format: The version of this description.
        backbone: The network, as the run's configuration named it.
        image_size: Side of the square, aligned RGB input, in pixels.
        embedding_size: d, the number of values in an embedding.
        pixels: How an 8-bit value becomes the network's input: 0..255 -> -1..1.
        channels: The order of the colour channels.
        embedding: How thresholds were measured: the unit-length sum of the outputs for the image
            and for its mirror image.
        score: How two embeddings are compared.
        thresholds: For each false accept rate that the run could measure.
        server_round: The round whose weights these are.
        run: The run's name.
        seed: The run's seed.
        trained_under_attack: The attack that the run simulated, or null: such a model is an
            experiment's, not one to use.
        fedface: The version that trained it.
        git_commit: The code's commit, where known.
        sha256: Of ``model.safetensors``.
    """

    format: Literal["fedface-model-1"] = "fedface-model-1"
    backbone: AnyBackbone
    image_size: PositiveInt
    embedding_size: PositiveInt
    pixels: Literal["x / 127.5 - 1"] = "x / 127.5 - 1"
    channels: Literal["RGB"] = "RGB"
    embedding: Literal["normalised sum of image and mirror image"] = (
        "normalised sum of image and mirror image"
    )
    score: Literal["cosine"] = "cosine"
    thresholds: tuple[Threshold, ...]
    server_round: PositiveInt
    run: str
    seed: NonNegativeInt
    trained_under_attack: str | None
    fedface: str | None
    git_commit: str | None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def export_model(path: Path) -> ExportedModel:
    """Writes the final global model of the complete run in ``path`` there; returns its description.

    Raises:
        RunFolderError: If the run is not complete, its last checkpoint is missing or does not
            belong to the last round, or the size of its images is not recorded.
        ConfigError: If the recorded backbone is none that this fedface knows, or not that of the
            checkpoint.
    """
    run = read_run(path)
    last_round = run.rounds[-1]["round"]
    checkpoint = RunFolder(path).latest()
    if checkpoint is None or checkpoint.server_round != last_round:
        found = "none" if checkpoint is None else f"one of round {checkpoint.server_round}"
        raise RunFolderError(f"{path}: needed a checkpoint of round {last_round}, found {found}")
    described = _described(run)
    model = described.backbone.build(described.image_size, stream(described.seed, "backbone"))
    needed = {**parameters.trainable(model), **parameters.buffers(model)}
    _load(model, checkpoint.model, set(needed), f"{path}: checkpoint of round {last_round}")
    partial = path / f".{WEIGHTS}.partial-{os.getpid()}"
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, partial, metadata={"format": "pt"})
    described = described.model_copy(update={"sha256": _sha256(partial)})
    os.replace(partial, path / WEIGHTS)
    write_atomically(path / DESCRIPTION, described.model_dump_json(indent=2) + "\n")
    return described


def _described(run: RecordedRun) -> ExportedModel:
    """The description of the run's final model, with a checksum of zeros."""
    backbone = run.config["model"]["backbone"]
    content = {
        "backbone": backbone,
        "image_size": image_size(run),
        "embedding_size": backbone["embedding_size"],
        "thresholds": [
            {"false_accept_rate": alpha, "threshold": point["threshold"]}
            for alpha, point in sorted(operating_points(run.final).items())
        ],
        "server_round": run.rounds[-1]["round"],
        "run": run.title,
        "seed": run.config["seed"],
        "trained_under_attack": run.result["attack"],
        "fedface": run.environment.get("packages", {}).get("fedface"),
        "git_commit": run.environment.get("git_commit"),
        "sha256": "0" * 64,
    }
    return parse_config(content, ExportedModel, str(run.path / "config.yaml"))


def describe_model(folder: Path) -> ExportedModel:
    """Returns the description of the exported model in ``folder``.

    Raises:
        ConfigError: If ``model.json`` is missing, no JSON or describes no model.
    """
    path = folder / DESCRIPTION
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: needed an exported model, found: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: needed JSON, found: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: needed a mapping of fields, found {type(content).__name__}")
    return parse_config(content, ExportedModel, str(path))


def load_model(folder: Path) -> nn.Module:
    """Returns the exported model in ``folder``, on the CPU and in evaluation mode.

    It maps ``(batch, 3, image_size, image_size)`` RGB images in [-1, 1] to
    ``(batch, embedding_size)`` float32 embeddings that are not of unit length;
    :func:`fedface.evaluation.embedding.embed` makes them so, as the thresholds need.

    Raises:
        ConfigError: If ``model.json`` is missing or wrong, or the weights are not the ones that it
            describes.
    """
    described, path = describe_model(folder), folder / WEIGHTS
    try:
        found = _sha256(path)
        if found != described.sha256:
            raise ConfigError(f"{path}: needed sha256 {described.sha256}, found {found}")
        tensors = load_file(path)
    except OSError as error:
        raise ConfigError(f"{path}: needed the weights, found: {error.strerror}") from None
    except SafetensorError as error:
        raise ConfigError(f"{path}: needed a safetensors file, found: {error}") from None
    model: nn.Module = described.backbone.build(described.image_size, stream(0, "load model"))
    _load(model, tensors, set(model.state_dict()), str(path))
    return model.eval()


def _load(model: nn.Module, tensors: dict[str, Tensor], needed: set[str], where: str) -> None:
    """Fills ``model`` with exactly the ``needed`` tensors."""
    if differing := set(tensors) ^ needed:
        raise ConfigError(
            f"{where}: needed the tensors of the described backbone, "
            f"differing: {sorted(differing)[:3]}"
        )
    try:
        parameters.load(model, tensors)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def image_size(run: RecordedRun) -> int:
    """Returns the side of the run's images in pixels, as recorded or else as configured.

    Raises:
        RunFolderError: If neither says it.
    """
    recorded = run.result.get("data") or {}
    size = recorded.get("image_size") or run.config["data"]["faces"].get("size")
    if size is None:
        raise RunFolderError(
            f"{run.path}: needed the size of the images, found neither data.image_size in "
            "result.json nor data.faces.size in config.yaml"
        )
    return int(size)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
