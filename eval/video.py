"""Short recordings of episodes, small and playable in every browser (stores keep exact ones, see core/video.py)."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from einops import rearrange
from jaxtyping import UInt8

from core.policy import Observation


def side_by_side(observation: Observation, cameras: tuple[str, ...]) -> UInt8[np.ndarray, "height width 3"]:
    """The images of `cameras` in a row; all cameras when none is named."""
    images = np.stack([observation.images[name] for name in cameras or sorted(observation.images)])
    return rearrange(images, "camera height width rgb -> height (camera width) rgb")


def write_video(path: str | Path, frames: UInt8[np.ndarray, "frames height width 3"], fps: float) -> None:
    """Write an H.264 file that browsers play; odd sizes lose a row or column."""
    even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    rate = Fraction(fps).limit_denominator(1000)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as file:
        stream: Any = file.add_stream("libx264", rate=rate, options={"crf": "26"})
        stream.height, stream.width, stream.pix_fmt = even.shape[1], even.shape[2], "yuv420p"
        stream.codec_context.thread_count = 1
        for number, pixels in enumerate(even):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = number, 1 / rate
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
