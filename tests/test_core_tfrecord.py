"""TFRecord files, tf.train.Example messages and the values in them, byte by byte."""

import random
import struct
import time
import zlib

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.formats.tfds_features import Leaf, values
from core.formats.tfrecord import RecordError, is_compressed, list_records, parse_example, read_record


def masked(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def record(message: bytes) -> bytes:
    length = struct.pack("<Q", len(message))
    return length + masked(length) + message + masked(message)


def varint(number: int) -> bytes:
    number, parts = number & (2**64 - 1), []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def delimited(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def example(name: bytes, field: int, content: bytes) -> bytes:
    return delimited(1, delimited(1, delimited(1, name) + delimited(2, delimited(field, content))))


def test_the_checksum_is_the_one_of_the_format(tmp_path):
    """The record that TensorFlow 2.21 writes for b"abc"."""
    (file := tmp_path / "shard").write_bytes(bytes.fromhex("0300000000000000b099490e6162636e57f121"))
    assert read_record(file, 0) == b"abc"


def test_lists_may_be_written_number_by_number():
    floats = b"".join(b"\x0d" + struct.pack("<f", number) for number in (1.5, -2.0))
    integers = b"\x08" + varint(-1) + b"\x08" + varint(300)
    entries = [
        delimited(1, delimited(1, name) + delimited(2, delimited(field, content)))
        for name, field, content in ((b"f", 2, floats), (b"i", 3, integers), (b"empty", 2, b""))
    ]
    found = parse_example(delimited(1, b"".join(entries)))
    assert found["f"].floats().tolist() == [1.5, -2.0]
    assert found["i"].integers().tolist() == [-1, 300]
    assert not len(found["empty"].floats())
    with pytest.raises(RecordError, match="a list of bytes is expected, the record holds floats"):
        found["f"].bytes_list()


def test_a_length_that_lies_is_not_believed(tmp_path):
    length = struct.pack("<Q", 2**62)
    (file := tmp_path / "shard").write_bytes(record(b"ab") + length + masked(length) + b"abc")
    offsets, problem = list_records(file)
    assert offsets == [0]
    assert f"{2**62} bytes, but the file ends" in problem
    assert read_record(file, 0) == b"ab"
    with pytest.raises(RecordError, match="the file ends"):
        read_record(file, 18)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_packed_integers_of_any_length_come_back(numbers):
    message = example(b"n", 3, delimited(1, b"".join(map(varint, numbers))))
    assert parse_example(message)["n"].integers().tolist() == numbers


def test_every_flipped_bit_of_a_record_is_found(tmp_path):
    intact = record(b"a message of some bytes")
    for bit in range(8 * len(intact)):
        changed = bytearray(intact)
        changed[bit // 8] ^= 1 << bit % 8
        (file := tmp_path / "shard").write_bytes(changed)
        with pytest.raises(RecordError, match=r"checksum|the file ends"):
            read_record(file, 0)


@pytest.mark.parametrize("kept", [1, 11, 12, 20, 38])
def test_a_file_that_was_cut_short_lists_what_is_whole(tmp_path, kept):
    whole, half = record(b"first"), record(b"a message of some bytes")
    (file := tmp_path / "shard").write_bytes(whole + half[:kept])
    offsets, problem = list_records(file)
    assert offsets == [0]
    assert f"ends at byte {len(whole) + kept}" in problem
    assert not is_compressed(file)


def test_a_message_that_names_a_feature_twice_or_ends_early_is_refused():
    once = example(b"n", 3, delimited(1, b"\x01"))
    with pytest.raises(RecordError, match="feature n stands twice"):
        parse_example(once + once)
    with pytest.raises(RecordError, match=r"a field of 200 bytes .* ends too late"):
        parse_example(b"\x0a" + varint(200) + b"\x0a")


NUMBERS = np.arange(3, dtype=np.float32)
PACKED = zlib.compress(NUMBERS.tobytes())
WRONG = {
    "larger than its type": (Leaf("number", "int8"), 3, delimited(1, varint(128)), "128 to 128, more than int8 can"),
    "no flag": (Leaf("number", "bool"), 3, delimited(1, b"\x02"), "more than bool can"),
    "no flag of bytes": (Leaf("number", "bool", (2,), "bytes"), 1, delimited(1, b"\x01\x02"), "neither true nor false"),
    "too short": (Leaf("number", "float32", (3,), "bytes"), 1, delimited(1, bytes(8)), r"\[8\] bytes, .* has 12"),
    "cut short": (Leaf("number", "float32", (3,), "zlib"), 1, delimited(1, PACKED[:-2]), "does not end after 12 bytes"),
    "too long": (Leaf("number", "float32", (2,), "zlib"), 1, delimited(1, PACKED), "does not end after 8 bytes"),
    "not packed": (Leaf("number", "float32", (3,), "zlib"), 1, delimited(1, b"nothing"), "cannot be unpacked"),
    "of unknown size": (Leaf("number", "float32", (None, None)), 2, delimited(1, bytes(8)), "holds 2 values"),
    "of another kind": (Leaf("BBoxFeature"), 2, b"", "BBoxFeature .*cannot be read"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_values_that_do_not_fit_their_description_are_refused(kind):
    leaf, field, content, message = WRONG[kind]
    with pytest.raises(RecordError, match=message):
        values(leaf, parse_example(example(b"n", field, content))["n"])


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_an_error_of_this_kind(content):
    for message in (
        content,
        delimited(1, delimited(1, content)),
        *(example(b"n", field, content) for field in (1, 2, 3)),
    ):
        try:
            for found in parse_example(message).values():
                read = {"bytes": found.bytes_list, "floats": found.floats, "integers": found.integers}
                assert len(read[found.kind or "bytes"]()) <= len(content)
        except RecordError as error:
            problem = str(error)
            assert problem


def test_messages_of_five_megabytes_are_read_in_milliseconds(tmp_path):
    pictures = b"".join(delimited(1, random.Random(0).randbytes(16_000)) for _ in range(300))
    numbers = np.random.default_rng(0).integers(0, 2**62, 20_000).tolist()
    message = example(b"pictures", 1, pictures) + example(b"numbers", 3, delimited(1, b"".join(map(varint, numbers))))
    (file := tmp_path / "shard").write_bytes(record(message))
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        found = parse_example(read_record(file, 0))
        assert len(found["pictures"].bytes_list()) == 300
        assert found["numbers"].integers().tolist() == numbers
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.1  # 5 ms on one core of 2026; a loop over bytes takes seconds.
