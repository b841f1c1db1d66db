"""The messages between a policy and its clients: whole there and back, and a WireError for anything else."""

import json
import pickle
import tracemalloc

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from stand_in_server import SPACE

from eval.wire import DTYPES, MAX_CONTAINERS, MAX_ENTRIES, ServerFacts, WireError, pack, read_request, unpack

PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=8)
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
ARRAYS = st.sampled_from(sorted(DTYPES)).flatmap(lambda kind: arrays.arrays(kind, SHAPES))
VALUES = st.recursive(
    PLAIN | st.binary(max_size=8) | ARRAYS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
FACTS = ServerFacts(fingerprint="f", cameras=("front",), action_space=SPACE, max_message_bytes=1)
IMAGE = np.zeros((4, 5, 3), np.uint8)


def packed_array(**changes) -> bytes:
    """A message with one array, changed after it was packed."""
    fields = {b"__ndarray__": True, b"data": b"\x00" * 8, b"dtype": "<f4", b"shape": [2]}
    return msgpack.packb({"state": fields | {name.encode(): value for name, value in changes.items()}})


def same(one, other) -> bool:
    if isinstance(one, np.ndarray):
        is_alike = one.dtype.newbyteorder("=") == other.dtype and one.shape == other.shape
        return is_alike and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@given(st.dictionaries(st.text(max_size=6), VALUES, max_size=5))
def test_a_message_arrives_as_it_was_sent(message):
    assert same(message, unpack(pack(message)))


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_arrays_of_every_number_type_arrive_writable_in_the_order_of_the_machine(dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    found = unpack(pack({"a": array, "whole": array.T, "one": array[1, 2]}))
    assert same(array, found["a"])
    assert same(array.T, found["whole"])
    assert found["a"].flags.writeable
    assert found["one"] == array[1, 2]


def test_arrays_are_packed_as_openpi_packs_them():
    array = np.arange(3, dtype=np.float32)
    theirs = {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": "<f4", b"shape": (3,)}
    assert pack({"actions": array}) == msgpack.packb({"actions": theirs})
    assert pack({"n": np.int16(3)}) == msgpack.packb({"n": {b"__npgeneric__": True, b"data": 3, b"dtype": "<i2"}})


@pytest.mark.parametrize(
    "value",
    [
        np.array([{}]),
        np.array(["text"]),
        np.array([1j]),
        np.zeros(2, "f4,i4"),
        np.zeros(1, "M8[s]"),
        np.zeros(1, np.longdouble),
        object(),
        {1, 2},
        2**70,
    ],
)
def test_what_is_not_numbers_and_text_is_never_sent(value):
    with pytest.raises(WireError, match="cannot hold this"):
        pack({"a": value})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dtype": "|O"}, "only numbers and booleans"),
        ({"dtype": "O", "data": pickle.dumps([1])}, "only numbers and booleans"),
        ({"dtype": "<U2"}, "only numbers and booleans"),
        ({"dtype": b"<f4"}, "only numbers and booleans"),
        ({"dtype": [["a", "<f4"]]}, "only numbers and booleans"),
        ({"shape": [3]}, "cannot have 8 bytes"),
        ({"shape": [2**62, 4]}, "cannot have 8 bytes"),
        ({"shape": [-2]}, "not of whole numbers"),
        ({"shape": [2.0]}, "not of whole numbers"),
        ({"shape": [True, 2]}, "not of whole numbers"),
        ({"shape": "2"}, "a shape, a list"),
        ({"shape": [1] * 9}, "at most 8 sides"),
        ({"data": "text"}, "data of bytes"),
        ({"data": b"\x00" * 7}, "cannot have 7 bytes"),
    ],
)
def test_an_array_that_is_none_is_refused(changes, said):
    with pytest.raises(WireError, match=said):
        unpack(packed_array(**changes))


@pytest.mark.parametrize("value", ["x", None, b"1", [1], 300])
def test_a_number_that_is_none_is_refused(value):
    with pytest.raises(WireError, match="a number"):
        unpack(msgpack.packb({"seed": {b"__npgeneric__": True, b"data": value, b"dtype": "|u1"}}))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_wire_error(data):
    _understood(data)


@given(st.data())
def test_any_damage_leaves_a_request_or_a_wire_error(data):
    whole = bytearray(pack({"images": {"front": IMAGE}, "state": np.ones(3), "prompt": "push", "seed": 3}))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    _understood(bytes(whole))


def _understood(data: bytes) -> None:
    try:
        request = read_request(unpack(data))
    except WireError as error:
        said = str(error)
    else:
        said = "understood"
        assert all(image.dtype == np.uint8 for image in request.observation.images.values())
    assert 0 < len(said) < 400


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\x81\xa1a" * 3000 + b"\x01",
        b"\xdc\x01\x00" * 3000,
        b"\xdd\x00\x10\x00\x00" * 500 + b"\x90" * 2**20,
        b"\xdc\x01\x00" + (b"\xdc\x01\x00" + b"\x80" * 256) * 256,
        b"\x81\xa1a" + b"\xdc\x01\x00" + b"\x91\x80" * 256,
    ],
    ids=lambda data: data[:6].hex(),
)
def test_a_small_message_cannot_take_much_memory(data):
    tracemalloc.start()
    with pytest.raises(WireError):
        unpack(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20


def test_lists_and_maps_have_limits_that_no_request_reaches():
    assert len(unpack(pack({"a": [0] * MAX_ENTRIES}))["a"]) == MAX_ENTRIES
    assert len(unpack(pack({"a": [[]] * (MAX_CONTAINERS - 2)}))["a"]) == MAX_CONTAINERS - 2
    with pytest.raises(WireError, match="more than 256"):
        unpack(pack({"a": [[]] * MAX_CONTAINERS}))


@pytest.mark.parametrize("data", [b"", b"\xc1", msgpack.packb([1]), msgpack.packb({1: 2}), msgpack.packb({b"a": 2})])
def test_a_message_is_a_map_with_text_as_keys(data):
    with pytest.raises(WireError, match=r"not valid msgpack|not a map with text"):
        unpack(data)


def test_requests_have_our_names_or_those_of_openpi():
    ours = {"images": {"front": IMAGE}, "proprioception": np.ones(3), "instruction": "push"}
    aloha = {"images": {"front": IMAGE}, "state": np.ones(3), "prompt": "push"}
    libero = {"observation/front": IMAGE, "observation/state": np.ones(3), "prompt": "push"}
    for message in (ours, aloha, libero):
        request = read_request(unpack(pack(message)))
        assert list(request.observation.images) == ["front"]
        assert request.observation.proprioception.tolist() == [1.0, 1.0, 1.0]
        assert request[1:] == ("push", None, False)
    assert read_request({"seed": 7, "reset": True})[1:] == (None, 7, True)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"image": IMAGE}, "unknown key 'image'; known: images"),
        ({"prompt": "a", "instruction": "b"}, "instruction is given twice"),
        ({"images": {"front": IMAGE}, "observation/front": IMAGE}, "camera front is given twice"),
        ({"images": IMAGE}, "images is a ndarray, not a map"),
        ({"images": {"front": [1, 2]}}, "camera front is a list, not an array"),
        ({"images": {"front": IMAGE.astype(np.float32)}}, "float32 .4, 5, 3., not uint8"),
        ({"images": {"front": np.zeros((3, 4, 5), np.uint8)}}, "channels come first, move them to the end"),
        ({"images": {"front": np.zeros((0, 5, 3), np.uint8)}}, "not uint8 .height"),
        ({"state": [1.0]}, "proprioception is list, not an array"),
        ({"state": np.zeros((1, 3))}, r"proprioception is float64 \(1, 3\)"),
        ({"state": np.zeros(3, bool)}, "proprioception is bool"),
        ({"state": np.array([0.0, np.nan])}, "holds nan at place 1; send finite numbers"),
        ({"prompt": b"push"}, "instruction is a bytes, not text"),
        ({"seed": -1}, "seed is -1, not a whole number"),
        ({"seed": True}, "seed is True"),
        ({"seed": 2**63}, "not a whole number from 0"),
        ({"seed": 1.0}, "seed is 1.0"),
        ({"reset": 1}, "reset is 1, not true or false"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(message, said):
    with pytest.raises(WireError, match=said):
        read_request(message)


def test_facts_arrive_whole_and_another_version_is_refused():
    sent = unpack(pack(FACTS.model_dump(mode="json")))
    assert ServerFacts.read(sent) == FACTS
    assert json.loads(FACTS.model_dump_json()) == sent
    with pytest.raises(WireError, match="protocol_version 2, this client 1"):
        ServerFacts.read(sent | {"protocol_version": 2})
    with pytest.raises(WireError, match="protocol_version None"):
        ServerFacts.read({"robot": "arm"})
    with pytest.raises(WireError, match="not what it should be"):
        ServerFacts.read(sent | {"cameras": 3})
