"""A question: what is asked with, and what was said about earlier answers."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sif_batch.errors import SifBatchError

Picture = str | os.PathLike[str] | bytes | Image.Image  # path or fsspec URL, encoded bytes, or decoded


@dataclass(frozen=True)
class Question:
    """Exactly one of image, images, vector, key and keys, or none of them and marks. See `Index.search`."""

    image: Picture | None = None
    images: Sequence[Picture] | None = None
    vector: np.ndarray | Sequence[float] | None = None
    key: str | None = None
    keys: Sequence[str] | None = None
    together: bool = False
    right: Sequence[str] = ()
    wrong: Sequence[str] = ()
    expand: int = 0

    def __post_init__(self) -> None:
        asked = ("image", "images", "vector", "key", "keys")
        given = [name for name in asked if getattr(self, name) is not None]
        if len(given) != 1 and not (not given and self.right):
            raise SifBatchError(
                f"search takes one of image, images, vector, key and keys; given: {', '.join(given) or 'none'}"
            )
        for name in ("images", "keys", "right", "wrong"):
            if isinstance(getattr(self, name), str | bytes):
                raise SifBatchError(f"{name} is one text, expected a list", remedy=f"{name}=[...]")
        if self.several and (self.right or self.wrong):
            raise SifBatchError(f"{given[0]} were marked as one query alone", remedy="ask with together=True")
        if self.together and given and given[0] in ("images", "keys") and not len(getattr(self, given[0])):
            raise SifBatchError(f"no {given[0]} to ask with together")
        if both := set(self.right) & set(self.wrong):
            raise SifBatchError(f"{min(both)} is marked both right and wrong", remedy="mark it as one of them")
        if self.expand < 0:
            raise SifBatchError(f"expand is {self.expand}, expected the number of hits to average in, 0 for none")

    @property
    def several(self) -> bool:
        """Whether it is several queries, each with an answer of its own."""
        return (self.images is not None or self.keys is not None) and not self.together

    @property
    def pictures(self) -> list[Picture]:
        """The images asked with, to be embedded."""
        return [self.image] if self.image is not None else list(self.images or ())

    @property
    def own_keys(self) -> list[str]:
        """The images of the release asked with, which are left out of the answer."""
        return [self.key] if self.key is not None else list(self.keys or ())
