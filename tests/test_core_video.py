"""Frames of videos in any order are those of a plain decoding from the start, whatever made the file."""

import multiprocessing
import os
import pickle
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_episodes import moving_picture, psnr_db

from core.video import CODECS, VideoError, VideoReader, VideoWriter, frame_rate
from core.video_index import PACKET, VideoIndex, index_video

HZ = 20 / 3


def write_with(path, frames, options, encoder="libx264", pixels="yuv420p", first=0, steps=None, rate=10):
    """A video as other programs write it: `steps` are the frames' times in units of 1 / (100 rate) s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        stream.codec_context.time_base = Fraction(1, 100 * rate)
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = first + (100 * number if steps is None else steps[number])
            frame.time_base = Fraction(1, 100 * rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def plainly_decoded(path):
    """Times and frames, from the start to the end by the library's own demuxer."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        return np.array([float(f.pts * stream.time_base) for f in frames]), [
            f.to_ndarray(format="rgb24") for f in frames
        ]


FRAMES = moving_picture(0, 40, 48, 64)
KINDS = {
    "b_frames": {"options": {"bf": "2", "g": "12", "x264-params": "b-adapt=0:keyint=12:min-keyint=12"}},
    "b_pyramid": {"options": {"bf": "3", "g": "15", "x264-params": "b-pyramid=normal:b-adapt=0"}},
    "open_groups": {"options": {"bf": "2", "g": "10", "x264-params": "open-gop=1:b-adapt=0:keyint=10"}},
    "open_pyramids": {"options": {"bf": "3", "x264-params": "open-gop=1:b-pyramid=normal:b-adapt=0:keyint=9"}},
    "hevc": {"options": {"x265-params": "keyint=10:bframes=3:log-level=none:pools=1"}, "encoder": "libx265"},
    "vp9": {"options": {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "16"}, "encoder": "libvpx-vp9"},
    "one_keyframe": {"options": {"g": "1000", "bf": "0"}},
    "variable_rate": {"options": {"bf": "2", "g": "8"}, "steps": np.cumsum(np.tile([100, 50, 250, 30], 10)).tolist()},
    "late_start": {"options": {"bf": "2", "g": "12"}, "first": 12_345},
    "without_b_frames": {"options": {"bf": "0", "g": "5"}},
    "av1": {"options": {"g": "12", "preset": "12", "svtav1-params": "lp=1"}, "encoder": "libsvtav1"},
    "mpeg4": {"options": {"g": "12", "bf": "2"}, "encoder": "mpeg4"},
}


@pytest.fixture(scope="module", params=KINDS)
def video(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / f"{request.param}.mp4"
    write_with(path, FRAMES, **KINDS[request.param])
    return path


def test_all_frames_and_any_of_them_are_those_of_a_plain_decoding(video):
    times, whole = plainly_decoded(video)
    reader = VideoReader()
    found, size = reader.times_and_size(video)
    assert size == (48, 64)
    np.testing.assert_allclose(found, times, atol=1e-9)
    np.testing.assert_array_equal(reader.read(video, times), whole)
    rng = np.random.default_rng(0)
    for _ in range(60):
        numbers = rng.integers(0, len(whole), rng.integers(1, 5))
        np.testing.assert_array_equal(reader.read(video, times[numbers]), [whole[number] for number in numbers])
    for number in range(len(whole)):
        np.testing.assert_array_equal(reader.read(video, times[number : number + 1])[0], whole[number])


def test_a_saved_index_reads_the_same_and_is_equal_for_equal_files(video, tmp_path):
    index_video(video).save(tmp_path / "index.npz")
    loaded, made = VideoIndex.load(tmp_path / "index.npz"), index_video(video)
    np.testing.assert_array_equal(loaded.packets, made.packets)
    facts = ("codec", "extradata", "size", "time_base", "is_in_order", "interval_s")
    assert [getattr(loaded, name) for name in facts] == [getattr(made, name) for name in facts]
    loaded.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "index.npz").read_bytes()
    times, whole = plainly_decoded(video)
    np.testing.assert_array_equal(
        VideoReader().read(video, times[[7, 3]], tmp_path / "index.npz"), [whole[7], whole[3]]
    )


def test_kinds_of_video_are_what_their_names_say(tmp_path):
    for name in ("b_frames", "open_groups", "b_pyramid"):
        write_with(tmp_path / f"{name}.mp4", FRAMES, **KINDS[name])
        assert not index_video(tmp_path / f"{name}.mp4").is_in_order
    write_with(tmp_path / "late.mp4", FRAMES, **KINDS["late_start"])
    assert index_video(tmp_path / "late.mp4").times[0] > 12
    write_with(tmp_path / "variable.mp4", FRAMES, **KINDS["variable_rate"])
    assert len(set(np.diff(index_video(tmp_path / "variable.mp4").times).round(4))) == 4


@settings(max_examples=60)
@given(order=st.lists(st.lists(st.integers(0, 39), min_size=1, max_size=6), min_size=1, max_size=8))
def test_whatever_was_read_before_the_next_frames_are_right(order):
    path, times, whole = b_frames()
    reader = VideoReader()
    for numbers in order:
        np.testing.assert_array_equal(reader.read(path, times[numbers]), [whole[number] for number in numbers])


_made: list = []


def b_frames():
    """One video with B-frames for all examples."""
    if not _made:
        path = Path(os.environ.get("TMPDIR", "/tmp")) / f"b_frames_{os.getpid()}.mp4"
        write_with(path, FRAMES, **KINDS["open_groups"])
        _made.append((path, *plainly_decoded(path)))
    return _made[0]


def teardown_module():
    for path, _, _ in _made:
        path.unlink(missing_ok=True)


def written(path, frames, codec="h264", hz=HZ):
    with VideoWriter(path, frames.shape[1:3], hz, codec) as writer:
        writer.append(frames)
        return writer.finish()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("count", "size"), [(1, (48, 64)), (2, (33, 47)), (7, (16, 16)), (40, (64, 48))])
def test_what_was_written_is_read_back(tmp_path, codec, count, size):
    frames = moving_picture(3, count, *size)
    index = written(tmp_path / "v.mp4", frames, codec)
    assert (len(index.packets), index.size, index.is_in_order) == (count, size, True)
    assert index.packets["is_key"][::2].all()
    read = VideoReader().read(tmp_path / "v.mp4", np.arange(count) / HZ)
    assert psnr_db(read, frames) > (40 if codec == "h264" else 27)
    assert len({frame.tobytes() for frame in read}) == count


@pytest.mark.parametrize("hz", [0.5, 5.0, 20 / 3, 29.97, 30.0, 59.94, 1000 / 33, 120.0])
def test_hours_of_frames_are_found_by_their_times(hz):
    assert abs(float(frame_rate(hz)) - hz) * 3600 < 0.01
    base, count = 1 / frame_rate(hz), round(3600 * hz)
    packets = np.zeros(count, PACKET)
    packets["pts"] = np.arange(count)
    index = VideoIndex(codec="h264", extradata=b"", size=(4, 4), time_base=base, packets=packets)
    np.testing.assert_array_equal(index.at(np.arange(count) / hz), np.arange(count))
    np.testing.assert_array_equal(index.at((np.arange(count) / hz).astype(np.float32).astype(float)), np.arange(count))


def test_times_at_which_nothing_is_shown_are_refused(tmp_path):
    written(tmp_path / "v.mp4", moving_picture(0, 10, 16, 16), hz=10.0)
    reader = VideoReader()
    for time in (-0.06, 0.96, 5.0, 1e9, float("inf"), float("nan")):
        with pytest.raises(VideoError, match=r"no frame is shown at .* only from 0\.0000 to 0\.9000 s"):
            reader.read(tmp_path / "v.mp4", [0.0, time])
    assert reader.read(tmp_path / "v.mp4", []).shape == (0, 16, 16, 3)
    np.testing.assert_array_equal(reader.read(tmp_path / "v.mp4", [0.34]), reader.read(tmp_path / "v.mp4", [0.3]))


def test_equal_frames_make_equal_files_at_sizes_that_are_no_multiple_of_16(tmp_path):
    frames, files = moving_picture(0, 18, 40, 56), set()
    for attempt in range(100):
        written(tmp_path / f"{attempt}.mp4", frames)
        files.add((tmp_path / f"{attempt}.mp4").read_bytes())
    assert len(files) == 1


def open_files():
    return len(os.listdir("/proc/self/fd"))


def test_few_files_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr("core.video.OPEN_FILES", 3)
    reader, before = VideoReader(), open_files()
    for number in range(8):
        written(tmp_path / f"{number}.mp4", moving_picture(number, 4, 16, 16))
    for number in (*range(8), 0, 7, 3):
        read = reader.read(tmp_path / f"{number}.mp4", np.arange(4) / HZ)
        assert psnr_db(read, moving_picture(number, 4, 16, 16)) > 40
    assert open_files() - before <= 3


def test_the_index_of_a_video_that_was_closed_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr("core.video.OPEN_FILES", 1)
    reader, frames = VideoReader(), {}
    for name in ("a", "b"):
        frames[name] = moving_picture(ord(name), 6, 32, 48)
        with VideoWriter(tmp_path / f"{name}.mp4", (32, 48), HZ) as writer:
            writer.append(frames[name])
            writer.finish().save(tmp_path / f"{name}.npz")
        reader.read(tmp_path / f"{name}.mp4", [0.0], tmp_path / f"{name}.npz")
        (tmp_path / f"{name}.npz").unlink()
    for name in ("a", "b", "a"):
        found = reader.read(tmp_path / f"{name}.mp4", [3 / HZ], tmp_path / f"{name}.npz")
        assert psnr_db(found[0], frames[name][3]) > 30
    monkeypatch.setattr("core.video.INDEX_BYTES", 1)
    with pytest.raises(VideoError, match="missing"):
        [reader.read(tmp_path / f"{name}.mp4", [0.0], tmp_path / f"{name}.npz") for name in ("b", "a", "b")]


def check_random_access(reader, path, whole, seed):
    for number in np.random.default_rng(seed).integers(0, len(whole), 200).tolist():
        np.testing.assert_array_equal(reader.read(path, [number / HZ])[0], whole[number])


def test_forked_readers_of_one_file_do_not_move_each_others_place(tmp_path):
    path, noise = tmp_path / "noise.mp4", np.random.default_rng(0).integers(0, 256, (120, 64, 64, 3), np.uint8)
    written(path, noise)
    reader = VideoReader()
    whole = reader.read(path, np.arange(120) / HZ)
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=check_random_access, args=(reader, path, whole, seed)) for seed in range(2)]
    for child in children:
        child.start()
    check_random_access(reader, path, whole, 2)
    for child in children:
        child.join(60)
        child.kill()
    assert [child.exitcode for child in children] == [0, 0]


def test_a_reader_sent_to_another_process_reads_the_same(tmp_path):
    written(tmp_path / "v.mp4", moving_picture(0, 10, 16, 16))
    reader = VideoReader()
    whole = reader.read(tmp_path / "v.mp4", np.arange(10) / HZ)
    copy = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(copy.read(tmp_path / "v.mp4", np.arange(10) / HZ), whole)


def test_a_reader_goes_on_after_an_error(tmp_path):
    frames = moving_picture(0, 20, 48, 64)
    index = written(tmp_path / "v.mp4", frames)
    whole = VideoReader().read(tmp_path / "v.mp4", np.arange(20) / HZ)
    data = bytearray((tmp_path / "v.mp4").read_bytes())
    data[int(index.packets["offset"][10]) + 40] ^= 1
    (tmp_path / "v.mp4").write_bytes(data)
    index.save(tmp_path / "v.npz")
    reader = VideoReader()
    for number in (3, 10, 4, 11, 12, 9, 10, 19):
        if number in (10, 11):
            with pytest.raises(VideoError, match="encoded frame 10 is not what was written"):
                reader.read(tmp_path / "v.mp4", [number / HZ], tmp_path / "v.npz")
        else:
            read = reader.read(tmp_path / "v.mp4", [number / HZ], tmp_path / "v.npz")
            np.testing.assert_array_equal(read[0], whole[number])


@pytest.mark.parametrize("content", [b"", b"no video", bytes(5000), b"\x00\x00\x00\x18ftypisom" + bytes(900)])
def test_what_is_no_video_is_refused(tmp_path, content):
    (tmp_path / "v.mp4").write_bytes(content)
    with pytest.raises(VideoError, match=r"v\.mp4"):
        VideoReader().read(tmp_path / "v.mp4", [0.0])


def test_a_missing_file_and_a_sound_without_pictures_are_refused(tmp_path):
    with pytest.raises(VideoError, match=r"none\.mp4"):
        VideoReader().read(tmp_path / "none.mp4", [0.0])
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate, sound.pts = 16000, 0
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="holds no video"):
        VideoReader().read(tmp_path / "sound.mp4", [0.0])
