"""TFRecord files and the tf.train.Example messages in them, read without TensorFlow.

Layout of a record, after tensorflow/core/lib/io/record_writer.h: length (uint64), its masked CRC-32C (uint32), the
message, its masked CRC-32C; all little-endian. Messages: tensorflow/core/example/example.proto and feature.proto, in
the protocol buffer wire format.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np
from jaxtyping import Float32, Int64

HEADER, FOOTER = 12, 4
"""Bytes before and after a message."""
LARGEST = 2**31 - 1
"""Bytes of a message; protocol buffers allow no more."""
MASK = 0xA282EAD8
VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5
"""Wire types."""
LISTS = {1: "bytes", 2: "floats", 3: "integers"}
"""Fields of a tf.train.Feature."""


class RecordError(ValueError):
    """Bytes that are not what the format prescribes; the message says where."""


class Listing(NamedTuple):
    """Where the records of a file begin."""

    offsets: list[int]
    problem: str
    """What stands where the next record should begin; empty if the file ends there as it should."""


def list_records(file: Path) -> Listing:
    """Where the records of a file begin, found by going from header to header.

    Raises:
        OSError: the file cannot be read.
    """
    offsets: list[int] = []
    position = 0
    with file.open("rb", buffering=0) as opened:
        size = os.fstat(opened.fileno()).st_size
        while position < size:
            try:
                length = _length(opened.fileno(), position, size)
            except RecordError as error:
                return Listing(offsets, str(error))
            offsets.append(position)
            position += HEADER + length + FOOTER
    return Listing(offsets, "")


def read_record(file: Path, offset: int) -> bytes:
    """The message of the record that begins at `offset`.

    Raises:
        RecordError: a checksum is wrong or the file ends too early.
        OSError: the file cannot be read.
    """
    with file.open("rb", buffering=0) as opened:
        length = _length(opened.fileno(), offset, os.fstat(opened.fileno()).st_size)
        read = os.pread(opened.fileno(), length + FOOTER, offset + HEADER)
    message, checksum = read[:length], read[length:]
    if len(checksum) != FOOTER or _masked_crc(message) != checksum:
        raise RecordError(f"the checksum of the {length} bytes of the record at byte {offset} is wrong: it is damaged")
    return message


def is_compressed(file: Path) -> bool:
    """Whether a file begins like a gzip stream, as TFRecord files do that were written with compression.

    Raises:
        OSError: the file cannot be read.
    """
    with file.open("rb") as opened:
        return opened.read(3) == b"\x1f\x8b\x08"


def _length(descriptor: int, offset: int, size: int) -> int:
    header = os.pread(descriptor, HEADER, offset)
    if len(header) != HEADER:
        raise RecordError(f"the file ends at byte {size}, within the header of the record at byte {offset}")
    if _masked_crc(header[:8]) != header[8:]:
        raise RecordError(
            f"the checksum of the header at byte {offset} is wrong: no record of this format begins there"
        )
    length = int.from_bytes(header[:8], "little")
    if length > min(LARGEST, size - offset - HEADER - FOOTER):
        raise RecordError(f"the record at byte {offset} has {length} bytes, but the file ends at byte {size}")
    return length


def _masked_crc(data: bytes) -> bytes:
    # Masked as record_writer.h does, because checksums of data that hold checksums are weak.
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF)


class Feature:
    """One list of a tf.train.Example, decoded when it is asked for."""

    def __init__(self, kind: str, content: memoryview) -> None:
        self.kind = kind
        """bytes, floats, integers; empty for a feature that was written without a value."""
        self._content = content

    def bytes_list(self) -> list[bytes]:
        """Entries of a list of bytes.

        Raises:
            RecordError: it is another list, or damaged.
        """
        self._expect("bytes")
        return [bytes(_delimited(value)) for _, value in _only(1, self._content)]

    def floats(self) -> Float32[np.ndarray, "n"]:
        """Entries of a list of floats.

        Raises:
            RecordError: it is another list, or damaged.
        """
        self._expect("floats")
        unpacked = _unpacked_floats(self._content)
        if unpacked is not None:
            return unpacked
        parts = []
        for wire_type, value in _only(1, self._content):
            data = _delimited(value) if wire_type == DELIMITED else value
            if isinstance(data, int) or len(data) % 4 or wire_type == FIXED64:
                raise RecordError("a list of floats has a length that is no multiple of 4 bytes")
            parts.append(np.frombuffer(data, "<f4"))
        return np.concatenate(parts).astype(np.float32) if parts else np.empty(0, np.float32)

    def integers(self) -> Int64[np.ndarray, "n"]:
        """Entries of a list of integers.

        Raises:
            RecordError: it is another list, or damaged.
        """
        self._expect("integers")
        parts = []
        for wire_type, value in _only(1, self._content):
            if isinstance(value, int):
                parts.append(np.array([value], np.uint64).view(np.int64))
            elif wire_type == DELIMITED:
                parts.append(_varints(value))
            else:
                raise RecordError("a list of integers holds floats")
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _expect(self, kind: str) -> None:
        if self.kind not in (kind, ""):
            raise RecordError(f"a list of {kind} is expected, the record holds {self.kind}")


def parse_example(message: bytes) -> dict[str, Feature]:
    """The features of a tf.train.Example by name.

    Raises:
        RecordError: the bytes are no such message.
    """
    features: dict[str, Feature] = {}
    for _, example in _only(1, memoryview(message)):
        for _, entry in _only(1, _delimited(example)):
            name, feature = _map_entry(_delimited(entry))
            if name in features:
                raise RecordError(f"feature {name} stands twice in one record")
            features[name] = feature
    return features


def _map_entry(entry: memoryview) -> tuple[str, Feature]:
    name, feature = "", Feature("", memoryview(b""))
    for number, _, value in _fields(entry):
        if number == 1:
            try:
                name = bytes(_delimited(value)).decode()
            except UnicodeDecodeError:
                raise RecordError(f"a feature's name is no UTF-8 text: {bytes(_delimited(value))[:40]!r}") from None
        elif number == 2:
            feature = _feature(_delimited(value))
    return name, feature


def _feature(content: memoryview) -> Feature:
    found = [(LISTS[number], _delimited(value)) for number, _, value in _fields(content) if number in LISTS]
    if len(found) > 1:
        raise RecordError(f"a feature holds several lists: {[kind for kind, _ in found]}")
    return Feature(*found[0]) if found else Feature("", memoryview(b""))


def _only(wanted: int, message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(wire type, value) of the fields with one number."""
    return ((wire_type, value) for number, wire_type, value in _fields(message) if number == wanted)


def _fields(message: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """(number, wire type, value) of each field: an integer, or the bytes of a field of another type."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        wire_type = tag & 7
        if wire_type == VARINT:
            number, position = _varint(message, position)
            yield tag >> 3, wire_type, number
            continue
        if wire_type == DELIMITED:
            length, position = _varint(message, position)
        elif wire_type in (FIXED32, FIXED64):
            length = 4 if wire_type == FIXED32 else 8
        else:
            raise RecordError(f"wire type {wire_type} at byte {position}: not a tf.train.Example")
        if length > len(message) - position:
            raise RecordError(f"a field of {length} bytes at byte {position} of {len(message)} ends too late")
        yield tag >> 3, wire_type, message[position : position + length]
        position += length


def _delimited(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise RecordError(f"the number {value} stands where bytes are expected: not a tf.train.Example")
    return value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number and the position after it."""
    number = 0
    for place, byte in enumerate(message[position : position + 10]):
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return number & 0xFFFFFFFFFFFFFFFF, position + place + 1
    raise RecordError(f"the number at byte {position} of {len(message)} does not end")


def _varints(packed: memoryview) -> Int64[np.ndarray, "n"]:
    """All numbers of a packed list at once: a loop over places, not over numbers."""
    data = np.frombuffer(packed, np.uint8)
    ends = np.flatnonzero(data < 0x80)
    if len(ends) == len(data):
        return data.astype(np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    if not len(ends) or ends[-1] != len(data) - 1 or (ends - starts).max() > 9:
        raise RecordError("a list of integers ends within a number")
    numbers = np.zeros(len(ends), np.uint64)
    for place in range(int((ends - starts).max()) + 1):
        has_place = starts + place <= ends
        bits = data[starts[has_place] + place].astype(np.uint64) & np.uint64(0x7F)
        numbers[has_place] |= bits << np.uint64(7 * place)
    return numbers.view(np.int64)


def _unpacked_floats(content: memoryview) -> Float32[np.ndarray, "n"] | None:
    """A list written number by number (tag 0x0D before each), read at once; None if it was not."""
    if len(content) % 5 or not len(content) or content[0] != 1 << 3 | FIXED32:
        return None
    rows = np.frombuffer(content, np.dtype([("tag", "u1"), ("number", "<f4")]))
    return rows["number"].astype(np.float32) if (rows["tag"] == content[0]).all() else None
