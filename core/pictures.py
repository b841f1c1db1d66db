"""Single pictures, JPEG or PNG."""

import base64
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


def picture_url(image: UInt8[np.ndarray, "height width 3"], quality: int) -> str:
    """A JPEG as a URL that needs no other file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def at_height(image: UInt8[np.ndarray, "h w 3"], height: int) -> UInt8[np.ndarray, "height width 3"]:
    """The image, so many pixels high."""
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
