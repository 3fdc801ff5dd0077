"""Files made to harm: every one is refused with a word why, nothing in it is run, little memory is taken.

Reference for the kinds: the attack gallery of safetensors; Fifield, A better zip bomb, 2019; CVE-2025-32434 of torch.
"""

import io
import json
import os
import pickle
import stat
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.weights.files import open_weights
from vfm_jax.weights.files.pickled import MAX_OPCODES, Refused, interpret

MEMORY = 200_000_000


def open_and_read(path):
    with open_weights(path) as weights:
        return [weights.read(name) for name in weights.shapes]


def refuse(path, match, read=False):
    """Opens (and reads) what must be refused; gives the message."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=match) as found:
            open_and_read(path) if read else open_weights(path)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    message = str(found.value)
    assert str(path) in message
    assert len(message.splitlines()) <= 5 and len(message) < 1500
    return message


# --- safetensors


def safetensors(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape, start, stop, dtype="F32", **more):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop], **more}


@pytest.mark.parametrize(
    ("header", "size", "match"),
    [
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, 12, "'b' overlaps"),
        ({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, 8, "'b' overlaps"),
        ({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, 20, "leaves 4 bytes"),
        ({"a": entry([2], 4, 12)}, 12, "leaves 4 bytes"),
        ({"a": entry([2], -8, 0)}, 8, "no place"),
        ({"a": entry([2], 8, 0)}, 8, "no place"),
        ({"a": entry([2], 0, 1 << 70)}, 8, "no place"),
        ({"a": entry([1 << 62], 0, 1 << 62)}, 8, "takes"),
        ({"a": entry([1 << 40], 0, 1 << 42)}, 8, "truncated"),
        ({"a": entry([1 << 32, 1 << 32], 0, 0)}, 0, "takes"),  # the product is 0 modulo 2**64
        ({"a": entry([-2], 0, 8)}, 8, "no shape"),
        ({"a": entry([2.0], 0, 8)}, 8, "no shape"),
        ({"a": entry([True], 0, 4)}, 4, "no shape"),
        ({"a": entry("2", 0, 8)}, 8, "no shape"),
        ({"a": entry([1] * 40, 0, 4)}, 4, "no shape"),
        ({"a": entry([2], 0.0, 8.0)}, 8, "no place"),
        ({"a": entry([2], 0, 9)}, 9, "takes 8 bytes, not 9"),
        ({"a": entry([2], 0, 2, dtype="F8_E4M3")}, 2, "F8_E4M3.*not read here"),
        ({"a": entry([2], 0, 8, dtype=["F32"])}, 8, "not read here"),
        ({"a": entry([2], 0, 8, hook="x")}, 8, "not described"),
        ({"a": {"dtype": "F32"}}, 0, "not described"),
        ({"a": [1, 2]}, 0, "not described"),
        ({"a" * 5000: entry([2], 0, 8)}, 8, "5,000 letters"),
        ({"a": entry([2], 0, 8)}, 7, "truncated"),
        ({"a": entry([2], 0, 8)}, 9, "1 bytes follow"),
        ({"__metadata__": {"a": 1}}, 0, "metadata"),
        ({"__metadata__": [1]}, 0, "metadata"),
        (b'{"a": 1, "a": 2}', 0, "'a' is there twice"),
        (b'{"a": NaN}', 0, "NaN is no number"),
        (b"{" + b'"a":{' * 40_000, 0, "nested too deeply|no JSON"),
        (b'{"a": \xff\xff}', 0, "no JSON"),
        (b'{"a": ' + b"9" * 10_000 + b"}", 0, "no JSON|not described"),
    ],
)
def test_a_safetensors_header_that_lies_is_refused(header, size, match, tmp_path):
    refuse(safetensors(tmp_path / "a.safetensors", header, b"\0" * size), match)


def test_a_safetensors_header_of_more_than_its_limit_is_not_read(tmp_path):
    refuse(safetensors(tmp_path / "a.safetensors", b"{", length=100_000_001), "claims 100,000,001 bytes")
    refuse(safetensors(tmp_path / "b.safetensors", b"{", length=(1 << 64) - 1), "claims")
    refuse(safetensors(tmp_path / "c.safetensors", b"{", length=1000), "truncated")


# --- pickles in archives of torch


class Canary:
    """Runs a command when it is unpickled."""

    def __init__(self, call, *arguments):
        self._reduced = call, arguments

    def __reduce__(self):
        return self._reduced


def archive(path, program, top="a", members=(), **options):
    """A zip as torch.save makes it, around any pickle."""
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr(f"{top}/data.pkl", program)
        for name, data in members:
            file.writestr(f"{top}/{name}", data)
    return path


def unicode(text):
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def integer(value):
    return (
        b"\x8a"
        + bytes([value.bit_length() // 8 + 1])
        + value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    )


def numbers(values):
    return b"(" + b"".join(integer(value) for value in values) + b"t"


def tensor(key="0", kind="torch\nFloatStorage", size=6, offset=0, shape=(2, 3), strides=(3, 1)):
    storage = (
        b"("
        + unicode("storage")
        + b"c"
        + kind.encode()
        + b"\n"
        + unicode(key)
        + unicode("cpu")
        + integer(size)
        + b"tQ"
    )
    arguments = b"(" + storage + integer(offset) + numbers(shape) + numbers(strides) + b"\x89}t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def state_dict(*values):
    return b"\x80\x02}(" + b"".join(unicode(f"w{i}") + value for i, value in enumerate(values)) + b"u."


def torch_file(path, *values, stored=24):
    return archive(path, state_dict(*values), members=[("data/0", b"\0" * stored), ("version", "3\n")])


def test_the_tensors_of_the_gallery_are_read_when_nothing_is_wrong(tmp_path):
    with open_weights(
        torch_file(tmp_path / "a.pt", tensor(), tensor(offset=2, shape=(2, 2), strides=(2, 1)))
    ) as weights:
        assert weights.shapes == {"w0": (2, 3), "w1": (2, 2)}
        np.testing.assert_array_equal(weights.read("w1"), np.zeros((2, 2), np.float32))


@pytest.mark.parametrize(
    ("call", "arguments", "named"),
    [
        (os.system, ["touch {}"], "posix.system"),
        (eval, ["open({!r}, 'w')"], "builtins.eval|__builtin__.eval"),
        (exec, ["open({!r}, 'w')"], "exec"),
        (open, ["{}", "w"], "io.open|_io.open"),
        (getattr, [os, "system"], "getattr"),
        (__import__, ["os"], "__import__"),
        (pickle.loads, [b"."], "loads"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_calls_is_refused_and_not_run(call, arguments, named, protocol, tmp_path):
    canary = tmp_path / "canary"
    arguments = [part.format(canary) if isinstance(part, str) else part for part in arguments]
    arguments = ["os" if part is os else part for part in arguments]
    program = pickle.dumps({"w": Canary(call, *arguments)}, protocol=protocol)
    message = refuse(archive(tmp_path / "a.pt", program), named)
    assert "Nothing of it was run" in message
    assert not canary.exists()


def test_a_pickled_network_is_refused_by_the_name_of_its_class(golden_directory):
    refuse(golden_directory / "weights_files" / "whole_model.pt", r"names __main__\.Tower.*state_dict\(\)")


@pytest.mark.parametrize(
    ("program", "match"),
    [
        (b"\x80\x02cos\nsystem\n" + unicode("true") + b"\x85R.", r"names os\.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93" + unicode("true") + b"\x85R.", r"names os\.system"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + b"cos\nsystem\n\x85R.", r"names os\.system"),
        (b"\x80\x02ctorch._utils _rebuild_tensor_v2\nx\n.", "names"),
        (b"\x80\x02c__torch__\nTower\n)\x81.", "names __torch__"),  # no TorchScript around it
        (b"\x80\x02(i__main__\nX\n.", "INST"),
        (b"\x80\x02(cargparse\nNamespace\no.", "OBJ"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02cargparse\nNamespace\n)}\x92.", "NEWOBJ_EX"),
        (b"\x80\x02P1\n.", "PERSID"),
        (b"\x80\x02I1\n.", "INT"),
        (b"\x80\x022.", "DUP|damaged"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        (b"\x80\x02" + unicode("x") + b"R.", "damaged|calls"),
        (b"\x80\x02}}R.", "no function"),
        (b"\x80\x02}" + unicode("k") + b"}s}b.", "w|no tensors|attributes"),
        (b"\x80\x02]}b.", "gives attributes"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", r"calls torch\.FloatStorage"),
        (b"\x80\x02cargparse\nNamespace\n)\x81}K\x01K\x02sb.", "attributes without names"),
        (b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cbuiltins\nint\ncbuiltins\nint\n)}tR.", "unknown way"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "0 arguments"),
        (b"\x80\x02}]K\x01s.", "keys are objects"),
        (b"\x80\x02K\x01Q.", "no storage"),
        (b"\x80\x02h\x05.", "never made"),
        (b"\x80\x02(.", "one object|disorder|no tensors"),
        (b"\x80\x02K\x01K\x02.", "one object"),
        (b"\x80\x02t.", "damaged"),
        (b"\x80\x02}", "damaged"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "damaged"),
        (b"\x80\x02\x8b\xff\xff\xff\x7fabc.", "damaged"),
        (b"\x80\x04\x8d" + b"\xff" * 8 + b"abc.", "damaged"),
        (b"\x80\x02\x8a\x20" + b"\x7f" * 32 + b".", "128 bits"),
        (b"\x80\x02\xff.", "damaged"),
        (b"\x80\x09.", "damaged|protocol 9"),
        (b"", "damaged"),
    ],
)
def test_a_pickle_that_is_no_state_dict_is_refused(program, match, tmp_path):
    refuse(archive(tmp_path / "a.pt", program, members=[("data/0", b"\0" * 24)]), match)


def test_a_pickle_without_tensors_is_refused(tmp_path):
    refuse(archive(tmp_path / "a.pt", pickle.dumps({"epoch": 3}, protocol=2)), "no tensors")


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"offset": 1}, "beyond"),
        ({"offset": -1}, "offset -1"),
        ({"offset": 1 << 62}, "offset"),
        ({"shape": (2, 4)}, "beyond"),
        ({"shape": (1 << 61, 1 << 61)}, "beyond"),
        ({"shape": (-2, 3)}, "shape"),
        ({"shape": (2, 3, 1)}, "no shape"),
        ({"strides": (4, 1)}, "beyond"),
        ({"strides": (-3, 1)}, "strides"),
        ({"strides": (1 << 61, 1)}, "beyond"),
        ({"shape": (1_000_000,), "strides": (0,)}, "beyond"),
        ({"shape": (1,) * 40, "strides": (1,) * 40}, "shape"),
        ({"size": 7}, "claims 7 numbers"),
        ({"size": -1}, "claims"),
        ({"size": 1 << 61}, "claims"),
        ({"key": "1"}, "not in it"),
        ({"key": "../version"}, "not in it"),
        ({"kind": "torch\nComplexFloatStorage"}, "ComplexFloatStorage"),
        ({"kind": "torch\nSize"}, "unknown type"),
        ({"kind": "torch.storage\nUntypedStorage"}, "no type"),
    ],
)
def test_a_tensor_outside_of_its_storage_is_refused(wrong, match, tmp_path):
    refuse(torch_file(tmp_path / "a.pt", tensor(**wrong)), match)


def test_many_views_of_one_storage_are_refused(tmp_path):
    """Each is within its storage; together they would take a hundred times the file."""
    views = [tensor(size=60_000, offset=i, shape=(59_000,), strides=(1,)) for i in range(100)]
    refuse(torch_file(tmp_path / "a.pt", *views, stored=240_000), "more than it has")


@pytest.mark.parametrize("copies", [2, 10])
def test_a_billion_laughs_are_refused(copies, tmp_path):
    """Forty lists, each holding the one before it several times: few bytes, copies**40 paths to the tensor."""
    lists = tensor() + b"q\x00"
    for i in range(40):
        lists += b"](" + (b"h" + bytes([i])) * copies + b"eq" + bytes([i + 1])
    program = b"\x80\x02(" + lists + b"t."
    refuse(archive(tmp_path / "a.pt", program, members=[("data/0", b"\0" * 24)]), "without end|more than 200,000")


def test_long_names_in_long_names_are_refused(tmp_path):
    """One key of a million letters, used at every depth."""
    key = b"X" + struct.pack("<I", 1_000_000) + b"k" * 1_000_000 + b"q\x00"
    program = b"\x80\x02}" + key + b"}h\x00" * 40 + tensor() + b"s" * 41 + b"."
    refuse(archive(tmp_path / "a.pt", program, members=[("data/0", b"\0" * 24)]), "1,000,000 letters")


def test_a_list_that_holds_itself_is_refused(tmp_path):
    refuse(torch_file(tmp_path / "a.pt", b"]q\x01h\x01a", tensor()), "nested too deeply")


def test_lists_in_lists_without_end_are_refused(tmp_path):
    deep = b"]" * 150_000 + b"a" * 149_999
    refuse(torch_file(tmp_path / "a.pt", deep, tensor()), "nested too deeply")


def test_more_steps_than_any_network_needs_are_refused(tmp_path):
    refuse(torch_file(tmp_path / "a.pt", b"N0" * MAX_OPCODES), "POP")
    refuse(torch_file(tmp_path / "b.pt", b"(" + b"N" * MAX_OPCODES + b"t"), "400,000 steps")


def test_a_pickle_of_more_bytes_than_any_network_needs_is_refused(tmp_path):
    refuse(torch_file(tmp_path / "a.pt", b"B" + struct.pack("<I", 40_000_000) + b"\0" * 40_000_000), "data.pkl has")


def test_two_tensors_of_one_name_are_refused(tmp_path):
    program = b"\x80\x02}(" + unicode("a/b") + tensor() + unicode("a") + b"}" + unicode("b") + tensor() + b"s" + b"u."
    refuse(archive(tmp_path / "a.pt", program, members=[("data/0", b"\0" * 24)]), "two tensors are called 'a/b'")


def test_another_byte_order_is_refused(tmp_path):
    members = [("data/0", b"\0" * 24), ("byteorder", "big")]
    refuse(archive(tmp_path / "a.pt", state_dict(tensor()), members=members), "big-endian")


def test_a_compressed_archive_of_torch_is_refused(tmp_path):
    path = archive(
        tmp_path / "a.pt", state_dict(tensor()), members=[("data/0", b"\0" * 24)], compression=zipfile.ZIP_DEFLATED
    )
    refuse(path, "compressed by something else")


# --- the legacy stream

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2)


def legacy(path, program, keys=("0",), sizes=(6,), little=True, tail=b""):
    machine = pickle.dumps(dict(protocol_version=1001, little_endian=little, type_sizes={}), protocol=2)
    data = b"".join(struct.pack("<q", size) + b"\0" * 24 for size in sizes)
    path.write_bytes(MAGIC + machine + program + pickle.dumps(list(keys), protocol=2) + data + tail)
    return path


def legacy_tensor(view=b"N", **given):
    return tensor(**given).replace(b"tQ", view + b"tQ", 1)


def test_the_legacy_stream_of_the_gallery_is_read_when_nothing_is_wrong(tmp_path):
    view = b"(" + unicode("v") + integer(2) + integer(4) + b"t"
    program = state_dict(legacy_tensor(), legacy_tensor(view=view, shape=(2, 2), strides=(2, 1)))
    with open_weights(legacy(tmp_path / "a.pt", program)) as weights:
        assert weights.shapes == {"w0": (2, 3), "w1": (2, 2)}
        assert weights.read("w1").shape == (2, 2)


@pytest.mark.parametrize(
    ("program", "options", "match"),
    [
        (b"\x80\x02cos\nsystem\n" + unicode("true") + b"\x85R.", {}, r"names os\.system"),
        (state_dict(legacy_tensor(size=7)), {}, "size"),
        (state_dict(legacy_tensor(size=1 << 50)), {}, "claims"),
        (state_dict(legacy_tensor(), legacy_tensor(size=5, shape=(5,), strides=(1,))), {}, "two sizes"),
        (state_dict(legacy_tensor()), {"keys": ("1",)}, "list of storages"),
        (state_dict(legacy_tensor()), {"keys": ("0", "0")}, "list of storages"),
        (state_dict(legacy_tensor()), {"sizes": ()}, "size"),
        (state_dict(legacy_tensor()), {"sizes": (-6,)}, "size"),
        (state_dict(legacy_tensor()), {"little": False}, "big-endian"),
        (state_dict(legacy_tensor()), {"tail": b"x"}, "1 bytes follow"),
        (
            state_dict(legacy_tensor(view=b"(" + unicode("v") + integer(4) + integer(4) + b"t")),
            {},
            "view of what is not",
        ),
        (
            state_dict(legacy_tensor(view=b"(" + unicode("v") + integer(-1) + integer(4) + b"t")),
            {},
            "view of what is not",
        ),
        (state_dict(legacy_tensor(view=b"(" + unicode("v") + integer(2) + integer(4) + b"t")), {}, "beyond"),
    ],
)
def test_a_legacy_stream_that_lies_is_refused(program, options, match, tmp_path):
    refuse(legacy(tmp_path / "a.pt", program, **options), match)


# --- zip


def npz(path, members, **options):
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


ONE = npy(np.ones(3, np.float32))


@pytest.mark.parametrize("name", ["../a.npy", "/etc/a.npy", "a/../../b.npy", "C:\\a.npy", "..\\a.npy", "~/a.npy"])
def test_a_member_that_points_outside_is_refused(name, tmp_path):
    refuse(npz(tmp_path / "a.npz", [(name, ONE)]), "points outside")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice_is_refused(tmp_path):
    refuse(npz(tmp_path / "a.npz", [("a.npy", ONE), ("a.npy", ONE)]), "'a.npy' twice")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_a_member_that_is_a_link_or_a_device_is_refused(kind, tmp_path):
    member = zipfile.ZipInfo("a.npy")
    member.external_attr = (kind | 0o777) << 16
    refuse(npz(tmp_path / "a.npz", [(member, b"/etc/passwd")]), "link or a device")


def patched(path, signature, offset, value):
    """Overwrites a field of the first header with that signature."""
    data = bytearray(path.read_bytes())
    place = data.index(signature) + offset
    data[place : place + len(value)] = value
    path.write_bytes(data)
    return path


LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


@pytest.mark.parametrize(
    ("signature", "offset", "value", "match"),
    [
        (CENTRAL, 8, b"\x01\x00", "encrypted"),
        (CENTRAL, 10, b"\x0e\x00", "method 14"),
        (CENTRAL, 10, b"\x08\x00", "do not agree"),
        (CENTRAL, 16, b"\0\0\0\0", "do not agree"),
        (CENTRAL, 20, b"\xfe\xff\xff\x7f", "do not agree|not there"),
        (CENTRAL, 24, b"\xfe\xff\xff\x7f", "do not agree|not there"),
        (CENTRAL, 24, b"\xff\xff\xff\xff", "do not agree|not there"),
        (CENTRAL, 42, b"\x01\x00\x00\x00", "not where"),
        (CENTRAL, 42, b"\xf0\xff\xff\x7f", "not where"),
        (CENTRAL, 46, b"b", "do not agree"),
        (CENTRAL, 28, b"\xff\xff", "directory ends early"),
        (CENTRAL, 0, b"PKxx", "directory is damaged"),
        (LOCAL, 26, b"\x07\x00", "do not agree"),
        (LOCAL, 30, b"b", "do not agree"),
        (LOCAL, 18, b"\x10\x00\x00\x00", "do not agree"),
        (END, 8, b"\x07\x00\x07\x00", "ends early"),
        (END, 4, b"\x01\x00", "one part of several"),
        (END, 12, b"\xf0\xff\xff\x7f", "members in a directory|not where"),
        (END, 16, b"\x01\x00\x00\x00", "not where its end says"),
        (END, 16, b"\xff\xff\xff\xff", "not where its end says"),
        (END, 20, b"\x09\x00", "follows the archive"),
    ],
)
def test_a_zip_whose_headers_disagree_is_refused(signature, offset, value, match, tmp_path):
    refuse(patched(npz(tmp_path / "a.npz", [("a.npy", ONE)]), signature, offset, value), match, read=True)


def test_members_that_share_their_bytes_are_refused(tmp_path):
    """The overlap of D. Fifield's bomb: many entries of the directory, one body."""
    path = npz(tmp_path / "a.npz", [("a.npy", ONE), ("b.npy", ONE)])
    data = bytearray(path.read_bytes())
    second = data.rindex(CENTRAL)
    data[second + 42 : second + 46] = bytes(4)  # where the first one starts
    data[second + 46 : second + 51] = b"a.npy"
    path.write_bytes(data)
    refuse(path, "twice|overlaps")
    data[second + 46 : second + 51] = b"b.npy"
    path.write_bytes(data)
    refuse(path, "do not agree")


def test_bytes_before_or_after_the_archive_are_refused(tmp_path):
    path = npz(tmp_path / "a.npz", [("a.npy", ONE)])
    whole = path.read_bytes()
    path.write_bytes(LOCAL + b"\0" * 60 + whole)
    refuse(path, "not where its end says")
    path.write_bytes(whole + b"more")
    refuse(path, "follows|truncated")


def test_a_compression_bomb_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.zeros(100_000_000, np.uint8))
    assert path.stat().st_size < 200_000
    refuse(path, "unpack to 100,000")


def test_a_member_that_unpacks_to_more_than_it_says_is_cut_and_refused(tmp_path):
    """Sizes in both headers are those of a small array, the stream is that of a large one."""
    path = npz(tmp_path / "a.npz", [("a.npy", npy(np.zeros(3_000_000, np.uint8)))], compression=zipfile.ZIP_DEFLATED)
    claimed = struct.pack("<I", len(npy(np.zeros(30_000, np.uint8))))
    patched(patched(path, LOCAL, 22, claimed), CENTRAL, 24, claimed)
    refuse(path, "does not have its size|more than", read=True)


def test_a_member_with_another_checksum_is_refused(tmp_path):
    path = npz(tmp_path / "a.npz", [("a.npy", ONE)], compression=zipfile.ZIP_DEFLATED)
    patched(patched(path, LOCAL, 14, b"abcd"), CENTRAL, 16, b"abcd")
    refuse(path, "checksum", read=True)


# --- npy


def with_header(text, data=b"\0" * 12, version=b"\x01\x00"):
    width = "<H" if version == b"\x01\x00" else "<I"
    return b"\x93NUMPY" + version + struct.pack(width, len(text)) + text.encode("latin1") + data


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (npy(np.array([Canary(os.system, "true")], dtype=object)), "holds object"),
        (npy(np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")])), "not numbers"),
        (npy(np.ones(3, ">f4")), "big-endian"),
        (npy(np.ones(3, np.complex64)), "not numbers"),
        (with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }\n"), "size"),
        (with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-3,), }\n"), "shape"),
        (with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1 << 60, 1 << 60), }\n"), "no array"),
        (
            with_header("{'descr': __import__('os').system('true'), 'fortran_order': False, 'shape': (3,), }\n"),
            "no array",
        ),
        (with_header("{'descr': '|O', 'fortran_order': False, 'shape': (3,), }\n"), "holds object"),
        (with_header("(" * 5000), "no array"),
        (with_header("x" * 20_000), "no array"),
        (with_header("{'descr': '<f4'}"), "no array"),
        (b"\x93NUMPY\x09\x00\x00\x00", "no array"),
        (b"not an array", "no array"),
        (b"", "no array"),
    ],
)
def test_a_member_that_is_no_array_of_numbers_is_refused(content, match, tmp_path):
    refuse(npz(tmp_path / "a.npz", [("a.npy", content)]), match)


def test_an_archive_of_other_things_is_refused(tmp_path):
    refuse(npz(tmp_path / "a.npz", [("a.npy", ONE), ("b.py", "1")]), "neither torch.save nor NumPy")


def test_the_interpreter_makes_nothing_but_data():
    def none(identity):
        raise Refused("no storage")

    made = interpret(io.BytesIO(pickle.dumps({"a": [1, 2.5, None, ("x", b"y")], 3: {True: "z"}}, protocol=4)), none)
    assert made == {"a": [1, 2.5, None, ("x", b"y")], 3: {True: "z"}}
