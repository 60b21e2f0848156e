"""An image as network input: decoded, scaled, cropped or padded to the square that an encoder takes."""

import numpy as np
from PIL import Image

from sif_batch.encoders.spec import EncoderSpec
from sif_batch.images.decode import LARGE_PIXELS, MAX_PIXELS, decode

RESAMPLE = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "hamming": Image.Resampling.HAMMING,
}
SCALES = (1.0, 2**0.5, 2**-0.5)  # of the view "scales": how far an image is enlarged in the network's square
SIDE = {"crop": min, "pad": max}  # the side of an image that is scaled to `resize_to`


class ImageReader:
    """Makes images into the input of one encoder's network. Safe to call from several threads at once."""

    def __init__(self, spec: EncoderSpec):
        self.spec = spec

    def read_image(self, data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, int, int]:
        """An encoded image as `prepare` gives it, and its width and height. Raises ImageError."""
        at_least = None if self.spec.decoding == "exact" else self.spec.resize_to
        decoded = decode(data, at_least, SIDE[self.spec.fit], max_pixels)
        return self.prepare(decoded.pixels), decoded.width, decoded.height

    def prepare(self, image: Image.Image) -> np.ndarray:
        """An RGB image as network input, (s, s, 3) uint8; with views, all of them: (v, s, s, 3)."""
        views = self.spec.views
        if not views:
            return self._square(image, 1.0)
        squares = [self._square(image, scale) for scale in (SCALES if "scales" in views else SCALES[:1])]
        if "flip" in views:
            squares += [square[:, ::-1] for square in squares]
        return np.stack(squares)

    def _square(self, image: Image.Image, enlarge: float) -> np.ndarray:
        """(s, s, 3) uint8: cropped from the image's centre, or padded around; what does not fit is cut off."""
        spec, size = self.spec, self.spec.input_size
        scale = enlarge * spec.resize_to / SIDE[spec.fit](image.size)
        if (
            spec.fit == "crop"
            and spec.decoding == "exact"
            and enlarge == 1
            and scale**2 * image.width * image.height <= LARGE_PIXELS
        ):
            return self._stock_square(image)
        if spec.fit == "crop" and enlarge >= 1:
            centre = _centred(image.size, size / scale)
            return np.asarray(image.resize((size, size), RESAMPLE[spec.resample], centre))
        if enlarge == 1:
            box, seen = None, (float(image.width), float(image.height))
        else:
            box = _centred(image.size, size / scale)
            seen = (box[2] - box[0], box[3] - box[1])
        scaled = (_side(seen[0] * scale, size), _side(seen[1] * scale, size))
        pixels = np.asarray(image.resize(scaled, RESAMPLE[spec.resample], box))
        left, top = (size - scaled[0]) // 2, (size - scaled[1]) // 2
        square = np.empty((size, size, 3), np.uint8)
        square.reshape(size, -1)[:] = np.tile(_border_mean(pixels), size)  # row by row: pixel by pixel takes .3 ms
        square[top : top + scaled[1], left : left + scaled[0]] = pixels
        return square

    def _stock_square(self, image: Image.Image) -> np.ndarray:
        """(s, s, 3) uint8, to the pixel what torchvision's Resize and CenterCrop make of a Pillow image."""
        spec, size = self.spec, self.spec.input_size
        short = min(image.size)
        scaled = image.resize([spec.resize_to * side // short for side in image.size], RESAMPLE[spec.resample])
        left, top = (round((side - size) / 2) for side in scaled.size)
        return np.asarray(scaled.crop((left, top, left + size, top + size)))


def _side(length: float, most: int) -> int:
    return min(most, max(1, round(length)))


def _centred(size: tuple[int, int], side: float) -> tuple[float, float, float, float]:
    """The square of `side` pixels in the middle of an image of this size."""
    left, top = (size[0] - side) / 2, (size[1] - side) / 2
    return max(0.0, left), max(0.0, top), min(float(size[0]), left + side), min(float(size[1]), top + side)


def _border_mean(pixels: np.ndarray) -> np.ndarray:
    """The mean colour of an image's outermost pixels: (h, w, 3) uint8 to (3,) uint8."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return np.rint(border.mean(axis=0)).astype(np.uint8)
