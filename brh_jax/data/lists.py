"""Images that a program holds already, of any sizes."""

import hashlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from brh_jax.data.sources import UNLABELLED, Source, digest
from brh_jax.errors import UserError
from brh_jax.images import ImageLike, as_image


class ImageList(Source):
    """PIL's images or arrays as a source without labels; see `brh_jax.images.as_image` for what is taken.

    Raises:
        UserError: no images, or something else among them.
    """

    def __init__(self, images: Sequence[ImageLike], name: str = "list"):
        super().__init__(name)
        self.images = list(images)
        if not self.images:
            raise UserError(f"{name} holds no images")
        for number, image in enumerate(self.images):
            if not isinstance(image, Image.Image | np.ndarray):
                raise UserError(
                    f"entry {number} of {name} is a {type(image).__name__}: expected PIL images or arrays; "
                    "of files give the folder"
                )

    def __len__(self):
        return len(self.images)

    def read(self, index: int):
        return {"image": as_image(self.images[index]), "label": UNLABELLED}

    def fingerprint(self):
        pixels = (np.ascontiguousarray(as_image(image)) for image in self.images)
        return digest(*((one.shape, hashlib.sha256(one.data).hexdigest()) for one in pixels))
