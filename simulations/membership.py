"""The membership test on folders of images and exported models."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedface.data.faces import Faces
from fedface.data.images import SUFFIXES, read_image
from fedface.evaluation.embedding import embed
from fedface.evaluation.membership import MembershipTest, Values, compactness, membership_test
from fedface.random import numpy_stream
from fedface.report.export import describe_model, load_model


def membership_of(
    model: Path,
    person: Path,
    never_seen: Path,
    members: Path | None = None,
    reference: Path | None = None,
) -> MembershipTest:
    """Returns the membership test of one person, on exported models.

    Nothing is cached: these may be images of somebody who has withdrawn.

    Args:
        model: Folder of the exported model in question.
        person: Folder of the person's aligned images, two or more.
        never_seen: Folder of people's folders, of whom nobody was trained on.
        members: The same, of whom all were trained on; None leaves the power unknown.
        reference: Folder of an exported model that never saw the person; the test then takes the
            gain in compactness over it.

    Raises:
        ValueError: If a folder has no person with two readable images, or a model cannot be used.
    """
    groups = [_people([person]), _people(sorted(never_seen.iterdir()))]
    if members is not None:
        groups.append(_people(sorted(members.iterdir())))
    values = [_compact(model, images) for images in groups]
    if reference is not None:
        values = [v - _compact(reference, g) for v, g in zip(values, groups, strict=True)]
    return membership_test(
        float(values[0][0]),
        values[1],
        values[2] if members is not None else None,
        numpy_stream(0, "membership"),
    )


def _people(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Person -> images, for each folder with two images or more."""
    people = {
        folder.name: sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
        for folder in folders
        if folder.is_dir() and not folder.name.startswith(".")
    }
    enough = {name: images for name, images in people.items() if len(images) >= 2}
    if not enough:
        where = folders[0].parent if len(folders) != 1 else folders[0]
        raise ValueError(f"{where}: needed a person with two images, found none")
    return enough


def _compact(model: Path, people: dict[str, list[Path]]) -> Values:
    """Each person's compactness under an exported model."""
    size = describe_model(model).image_size
    images, identities = [], []
    for number, paths in enumerate(people.values()):
        for path in paths:
            image = read_image(path, size, str(path))
            if not isinstance(image, np.ndarray):
                raise ValueError(f"{image.what}: needed a readable image, found: {image.why}")
            images.append(image)
            identities.append(number)
    faces = Faces(np.stack(images), np.array(identities, np.int64), tuple(people))
    return compactness(embed(load_model(model), faces.images), faces.identities)
