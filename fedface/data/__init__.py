"""Faces and how they are loaded, cached, split and dealt to sites."""

from typing import Annotated

from pydantic import Field

from fedface.data.cuhk import CuhkFaces
from fedface.data.faces import Faces, Skip
from fedface.data.folder import FolderFaces
from fedface.data.insightface import InsightFaceBin, InsightFaceRecord
from fedface.data.lfw import LfwFaces, LfwPairs
from fedface.data.olivetti import OlivettiFaces
from fedface.data.pairs import Pairs
from fedface.data.renderer import RenderedFaces

AnyFaces = Annotated[
    RenderedFaces | FolderFaces | LfwFaces | OlivettiFaces | InsightFaceRecord | CuhkFaces,
    Field(discriminator="name"),
]
"""Every set of faces a YAML file can name."""

AnyPairs = Annotated[LfwPairs | InsightFaceBin, Field(discriminator="name")]
"""Every verification protocol in pairs that a YAML file can name."""

__all__ = [
    "AnyFaces",
    "AnyPairs",
    "CuhkFaces",
    "Faces",
    "FolderFaces",
    "InsightFaceBin",
    "InsightFaceRecord",
    "LfwFaces",
    "LfwPairs",
    "OlivettiFaces",
    "Pairs",
    "RenderedFaces",
    "Skip",
]
