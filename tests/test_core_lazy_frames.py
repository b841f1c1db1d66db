"""Frames are decoded a few at a time, so few that their bytes stay few too."""

import numpy as np
import pytest
from PIL import Image

from core.formats.assembly import transformed
from core.formats.mapping import ViewMapping
from core.lazy_frames import BLOCK_BYTES, BLOCK_FRAMES, LazyFrames, blocks

FOUR_K = (2160, 3840)


def asked_for(count: int, size: tuple[int, int]) -> tuple[LazyFrames, list[int]]:
    """Black frames, and how many of them each look decodes."""
    looks: list[int] = []

    def read(start: int, stop: int) -> np.ndarray:
        looks.append(stop - start)
        return np.zeros((stop - start, *size, 3), np.uint8)

    return LazyFrames(count, size, read), looks


@pytest.mark.parametrize(("size", "at_once"), [((480, 640), BLOCK_FRAMES), (FOUR_K, 2), ((6000, 8000), 1)])
def test_blocks_of_large_frames_have_fewer(size, at_once):
    frames, looks = asked_for(at_once + 1, size)
    assert [len(block) for block in blocks(frames)] == looks == [at_once, 1]
    assert at_once == 1 or at_once * size[0] * size[1] * 3 <= BLOCK_BYTES


def test_a_stretch_of_small_pictures_decodes_few_large_frames_at_once():
    frames, looks = asked_for(8, FOUR_K)
    small = transformed(frames, ViewMapping(source="front", size=(8, 16)))
    assert [block.shape for block in blocks(small)] == [(8, 8, 16, 3)]
    assert looks == [2, 2, 2, 2]


@pytest.mark.parametrize("rotate_deg", [0, 90, 180, 270])
@pytest.mark.parametrize("size", [None, (20, 14)])
def test_frames_are_turned_and_shrunk_each_on_its_own(rotate_deg, size):
    source = np.random.default_rng(0).integers(0, 256, (40, 30, 42, 3), np.uint8)
    frames = transformed(source, ViewMapping(source="front", rotate_deg=rotate_deg, size=size))
    for number, frame in enumerate(source):
        wanted = np.rot90(frame, -rotate_deg // 90)
        if size:
            wanted = np.asarray(Image.fromarray(wanted).resize(size[::-1], Image.Resampling.BOX))
        np.testing.assert_array_equal(frames[number : number + 1][0], wanted)
        np.testing.assert_array_equal(frames[:][number], wanted)
    assert frames[5:5].shape == (0, *frames.shape[1:])
