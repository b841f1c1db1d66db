"""Single pictures, JPEG or PNG."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from core.video_index import MOST_PIXELS


def decode_image(encoded: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """Pixels, RGB, of a JPEG or PNG picture.

    Raises:
        ValueError: it is damaged or something else.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"it claims to have {image.width} x {image.height} pixels")
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"it has the mode {image.mode}, more than 8 bits a colour")
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"a picture of {len(encoded)} bytes cannot be decoded: {error}") from None
