"""The Olivetti faces: 40 people, ten 64x64 grey photos each, through scikit-learn.

Samaria, Harter, "Parameterisation of a stochastic model for human face identification", WACV 1994.
They show the same people as the ORL / AT&T set: the two never count as two sets.

scikit-learn loads its local copy with joblib, which is pickle: it runs whatever the file says.
For trusted local caches only: point ``data_home`` at a copy of your own making or download, never
at a file from a stranger.
"""

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import PositiveInt

from fedface.config import Config
from fedface.data.faces import Faces
from fedface.data.images import square


class OlivettiFaces(Config):
    """scikit-learn's Olivetti faces, grey repeated in three channels.

    Attributes:
        data_home: scikit-learn's data folder; None means its default, ``~/scikit_learn_data``.
        size: Height and width in pixels that images are resized to, or None to keep 64.
        download_if_missing: Whether scikit-learn may fetch the set from the internet (it checks
            the download's hash).
    """

    name: Literal["olivetti"] = "olivetti"
    data_home: Path | None = None
    size: PositiveInt | None = None
    download_if_missing: bool = False

    def load(self) -> Faces:
        """Returns the 400 faces, in order of the 40 people ``olivetti_00`` to ``olivetti_39``.

        Raises:
            ValueError: If the set is neither there nor may be fetched.
        """
        from sklearn.datasets import fetch_olivetti_faces  # slow to import, needed here only

        try:
            photos, people = fetch_olivetti_faces(
                data_home=self.data_home,
                download_if_missing=self.download_if_missing,
                return_X_y=True,
            )
        except OSError as error:
            raise ValueError(
                "olivetti: data_home needs scikit-learn's olivetti_py3.pkz (or set "
                f"download_if_missing), found {self.data_home or 'the default'}: {error}"
            ) from error
        grey = np.rint(np.asarray(photos).reshape(-1, 64, 64) * 255).astype(np.uint8)
        if self.size is not None:
            grey = np.stack([np.array(square(Image.fromarray(g), self.size)) for g in grey])
        identities = np.asarray(people, np.int64)
        return Faces(
            images=np.repeat(grey[..., None], 3, axis=-1),
            identities=identities,
            names=tuple(f"olivetti_{i:02d}" for i in range(int(identities.max()) + 1)),
        )
