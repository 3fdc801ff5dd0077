"""Files of weights: what is read is what was written, and what is no file of weights is refused with a word why."""

import json
import pathlib
import struct

import ml_dtypes
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.weights.files import Spec, open_weights, save_safetensors, save_shards

TORCH_FILES = ["dtypes", "dtypes_legacy", "views", "views_legacy", "training", "training_legacy", "torchscript"]


def bits(array):
    """The array with bfloat16 as its bits, which is how the reference files hold it."""
    return array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array


def write(path, tensors, **options):
    specs = {name: Spec(array.shape, array.dtype) for name, array in tensors.items()}
    save_safetensors(path, specs, tensors.items(), **options)


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    return {
        "blocks.0.weight": rng.standard_normal((3, 5), dtype=np.float32),
        "count": np.array(7, np.int64),
        "half": rng.standard_normal((2, 3)).astype(np.float16),
        "brain": rng.standard_normal((5, 2)).astype(ml_dtypes.bfloat16),
        "flag": np.array([True, False, True]),
        "none": np.zeros((0, 4), np.float32),
        "byte": np.arange(7, dtype=np.uint8),
        "größe": rng.standard_normal((4,)),
    }


@pytest.mark.parametrize("name", TORCH_FILES)
def test_a_file_of_torch_gives_the_numbers_that_torch_put_in(name, golden_directory):
    expected = np.load(golden_directory / "weights_files" / f"{name}.npz")
    with open_weights(golden_directory / "weights_files" / f"{name}.pt") as weights:
        assert weights.format == "torch"
        assert set(weights.shapes) == set(expected.files)
        for key in expected.files:
            found = weights.read(key)
            assert (found.shape, found.dtype) == (weights.shapes[key], weights.dtypes[key])
            assert bits(found).dtype == expected[key].dtype
            np.testing.assert_array_equal(bits(found), expected[key])


def test_a_safetensors_file_of_the_official_library_gives_its_numbers(golden_directory):
    expected = np.load(golden_directory / "weights_files" / "dtypes.npz")
    with open_weights(golden_directory / "weights_files" / "dtypes.safetensors") as weights:
        assert weights.format == "safetensors"
        assert weights.metadata == {"format": "pt"}
        assert set(weights.shapes) == set(expected.files)
        for key in expected.files:
            np.testing.assert_array_equal(bits(weights.read(key)), expected[key])


def test_the_trained_vit_opens(shared):
    """Its names and shapes are those that torch.load(weights_only=True) lists; the numbers are those of the zip."""
    path = shared / "data" / "vit_cifar10_weights" / "vit_cifar10.pth"
    with open_weights(path) as weights:
        assert len(weights.shapes) == 80
        assert sum(weights.read(name).size for name in weights.shapes) == 811_146
        assert list(weights.shapes)[:2] == ["cls_token", "pos_embed"]
        assert weights.shapes["pos_embed"] == (1, 65, 128)
        assert weights.config is None
        assert weights.size_bytes == path.stat().st_size
        assert all(np.isfinite(weights.read(name)).all() for name in weights.shapes)


def test_every_reference_network_opens(shared):
    for path in sorted((shared / "golden" / "models").iterdir()):
        with open_weights(path) as weights:
            assert (weights.config is None) == path.is_file()
            assert all(weights.read(name).shape == shape for name, shape in weights.shapes.items())


def test_what_is_written_is_read(tensors, tmp_path):
    path = tmp_path / "model.safetensors"
    write(path, tensors, metadata={"source": "here"})
    with open_weights(path) as weights:
        assert weights.metadata == {"source": "here"}
        assert set(weights.shapes) == set(tensors)
        for name, array in tensors.items():
            found = weights.read(name)
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(bits(found), bits(array))
            assert not found.flags.writeable
    assert [path] == list(tmp_path.iterdir())  # no temporary file is left


def test_the_official_library_reads_what_is_written(tensors, tmp_path):
    official = pytest.importorskip("safetensors.numpy")
    write(tmp_path / "ours.safetensors", tensors)
    found = official.load_file(tmp_path / "ours.safetensors")
    assert set(found) == set(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(bits(found[name]), bits(array))


def test_what_the_official_library_writes_is_read(tensors, tmp_path):
    official = pytest.importorskip("safetensors.numpy")
    official.save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "np"})
    with open_weights(tmp_path / "theirs.safetensors") as weights:
        assert weights.metadata == {"format": "np"}
        for name, array in tensors.items():
            np.testing.assert_array_equal(bits(weights.read(name)), bits(array))


def test_a_large_tensor_is_a_view_of_the_file_and_outlives_it(tmp_path):
    large = np.random.default_rng(0).standard_normal((300, 170), dtype=np.float32)
    write(tmp_path / "a.safetensors", {"small": np.ones(3, np.uint8), "large": large})
    weights = open_weights(tmp_path / "a.safetensors")
    found = weights.read("large")
    assert not found.flags.owndata and not found.flags.writeable
    weights.close()
    np.testing.assert_array_equal(found, large)
    with pytest.raises(ValueError, match="closed"):
        weights.read("large")


def test_a_write_that_fails_leaves_the_old_file(tensors, tmp_path):
    path = tmp_path / "model.safetensors"
    write(path, tensors)
    before = path.read_bytes()
    specs = {"a": Spec((2,), np.dtype(np.float32)), "b": Spec((3,), np.dtype(np.float32))}
    with pytest.raises(ValueError, match="1 tensors did not come, 'b'"):
        save_safetensors(path, specs, [("a", np.zeros(2, np.float32))])
    with pytest.raises(ValueError, match="announced was"):
        save_safetensors(path, specs, [("a", np.zeros(2, np.float16))])
    with pytest.raises(ValueError, match="not announced"):
        save_safetensors(path, specs, [("c", np.zeros(2, np.float32))])
    with pytest.raises(ValueError, match="no name in safetensors"):
        save_safetensors(path, {"a": Spec((2,), np.dtype(np.complex64))}, [])
    assert path.read_bytes() == before
    assert [path] == list(tmp_path.iterdir())


def test_shards_are_one_set_of_weights_again(tensors, tmp_path):
    specs = {name: Spec(array.shape, array.dtype) for name, array in tensors.items()}
    paths = save_shards(tmp_path, specs, iter(tensors.items()), max_shard_bytes=70)
    assert len(paths) > 2
    assert paths[0].name == f"model-00001-of-{len(paths):05d}.safetensors"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in tensors.values())
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "preprocessor_config.json").write_text('{"size": 32}')
    with open_weights(tmp_path) as weights:
        assert list(weights.shapes) == list(tensors)
        assert (weights.config, weights.preprocessor) == ({"model_type": "vit"}, {"size": 32})
        assert weights.size_bytes == sum(path.stat().st_size for path in paths)
        assert weights.note == ""
        for name, array in tensors.items():
            np.testing.assert_array_equal(bits(weights.read(name)), bits(array))


def test_weights_below_the_limit_are_one_file(tensors, tmp_path):
    specs = {name: Spec(array.shape, array.dtype) for name, array in tensors.items()}
    assert save_shards(tmp_path, specs, tensors.items()) == [tmp_path / "model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_an_index_that_lies_is_refused(tensors, tmp_path):
    specs = {name: Spec(array.shape, array.dtype) for name, array in tensors.items()}
    paths = save_shards(tmp_path, specs, tensors.items(), max_shard_bytes=70)
    index = tmp_path / "model.safetensors.index.json"
    right = json.loads(index.read_text())

    def refused(match, **places):
        index.write_text(json.dumps({**right, "weight_map": {**right["weight_map"], **places}}))
        with pytest.raises(UserError, match=match):
            open_weights(tmp_path)

    refused("do not agree about 'extra'", extra=paths[0].name)
    refused("not beside it", extra="../a.safetensors")
    refused("not beside it", extra="/etc/passwd")
    refused("1 are not there: b.safetensors", extra="b.safetensors")
    index.write_text("{}")
    with pytest.raises(UserError, match="no weight_map"):
        open_weights(tmp_path)


def test_of_several_files_the_safest_is_taken_and_said(tensors, tmp_path, golden_directory):
    write(tmp_path / "model.safetensors", tensors)
    (tmp_path / "pytorch_model.bin").write_bytes((golden_directory / "weights_files" / "views.pt").read_bytes())
    with open_weights(tmp_path) as weights:
        assert weights.format == "safetensors"
        assert weights.note == "model.safetensors was taken, not pytorch_model.bin"
    (tmp_path / "model.safetensors").unlink()
    with open_weights(tmp_path) as weights:
        assert (weights.format, weights.note) == ("torch", "")


def test_a_folder_with_one_file_of_any_name_opens_and_with_two_asks(tensors, tmp_path):
    (tmp_path / "config.json").write_text('{"a": 1}')
    write(tmp_path / "last.safetensors", tensors)
    with open_weights(tmp_path) as weights:
        assert weights.config == {"a": 1}
        assert weights.note == "last.safetensors was taken"
    with open_weights(tmp_path / "last.safetensors") as weights:
        assert weights.config is None  # it may be anybody's
    write(tmp_path / "best.safetensors", tensors)
    with pytest.raises(UserError, match=r"best.safetensors, last.safetensors. Name one"):
        open_weights(tmp_path)


def test_open_clip_has_a_config_of_its_own(tensors, tmp_path):
    write(tmp_path / "open_clip_model.safetensors", tensors)
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}}')
    (tmp_path / "config.json").write_text('{"architecture": "x"}')
    with open_weights(tmp_path / "open_clip_model.safetensors") as weights:
        assert weights.config == {"model_cfg": {}}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_gives_its_arrays_without_the_prefix(save, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "params/Transformer/kernel": rng.standard_normal((3, 5), dtype=np.float32),
        "params/fortran": np.asfortranarray(rng.standard_normal((2, 7))),
        "params/scalar": np.float32(2.5),
        "params/empty": np.zeros((0, 3), np.int32),
        "params/large": rng.standard_normal((300, 130), dtype=np.float32),
        "opt/step": np.int64(9),
        "words": np.array("a description"),
    }
    save(tmp_path / "a.npz", **arrays)
    with open_weights(tmp_path / "a.npz") as weights:
        assert weights.format == "npz"
        assert "'params/'" in weights.note and "'words' holds words" in weights.note
        expected = {name.removeprefix("params/"): array for name, array in arrays.items() if name != "words"}
        assert set(weights.shapes) == set(expected)
        for name, array in expected.items():
            found = weights.read(name)
            assert found.dtype == np.asarray(array).dtype
            np.testing.assert_array_equal(found, array)


def test_the_bfloat16_that_numpy_has_no_name_for_is_known_in_an_npz(tmp_path):
    brain = np.random.default_rng(0).standard_normal((3, 4)).astype(ml_dtypes.bfloat16)
    np.savez(tmp_path / "a.npz", **{"opt/target/kernel": brain})
    with open_weights(tmp_path / "a.npz") as weights:
        assert weights.dtypes["kernel"] == brain.dtype
        np.testing.assert_array_equal(bits(weights.read("kernel")), bits(brain))


def test_an_unknown_tensor_is_answered_with_the_nearest(tensors, tmp_path):
    write(tmp_path / "a.safetensors", tensors)
    with (
        open_weights(tmp_path / "a.safetensors") as weights,
        pytest.raises(UserError, match=r"mean 'blocks\.0\.weight'"),
    ):
        weights.read("blocks.1.weight")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        ("model.safetensors", b"<!DOCTYPE html><html>404</html>", "web page"),
        ("w.pth", b"\n  <HTML>log in</HTML>", "web page"),
        ("w.npz", b'{"error": "gated"}', "JSON"),
        ("w.pth", b"", "empty"),
        ("w.pth", b"\0" * 5000, "zeros"),
        ("w.pth", b"\x1f\x8b\x08\0 ...", "an archive. Unpack"),
        ("w.tar", b"a" * 257 + b"ustar\0" + b"\0" * 300, "an archive. Unpack"),
        ("w.npy", b"\x93NUMPY\x01\0", "numpy.savez"),
        ("w.h5", b"\x89HDF\r\n", "HDF5"),
        ("w.pkl", b"\x80\x04\x95\x0b\0\0\0\0\0\0\0}.", "bare Python pickle"),
        ("w.pth", b"hello, this is text", "begins with b'hello, t'"),
        ("w.pth", b"PK\x03\x04" + b"\0" * 100, "truncated"),
    ],
)
def test_what_is_downloaded_by_mistake_is_called_by_its_name(name, content, says, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        open_weights(tmp_path / name)


def test_a_file_under_the_name_of_another_format_is_refused(tensors, tmp_path, golden_directory):
    disguised = tmp_path / "model.safetensors"
    disguised.write_bytes((golden_directory / "weights_files" / "views.pt").read_bytes())
    with pytest.raises(UserError, match=r"a file of torch.*rename it to model\.pt"):
        open_weights(disguised)
    write(tmp_path / "a.pth", tensors)
    with pytest.raises(UserError, match=r"a file of safetensors.*rename it to a\.safetensors"):
        open_weights(tmp_path / "a.pth")


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(UserError, match="nothing at"):
        open_weights(tmp_path / "absent.pth")
    with pytest.raises(UserError, match=r"holds no weights. Expected one of: model\.safetensors"):
        open_weights(tmp_path)
    with pytest.raises(UserError, match="neither a file"):
        open_weights(pathlib.Path("/dev/zero"))


def test_a_config_that_is_none_is_refused(tensors, tmp_path):
    write(tmp_path / "model.safetensors", tensors)
    for text, says in (("[1]", "no object"), ("{", "no JSON"), ("[" * 100_000, "no JSON")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=says):
            open_weights(tmp_path)


@pytest.mark.parametrize("name", ["dtypes.pt", "training_legacy.pt", "dtypes.safetensors", "dtypes.npz"])
def test_a_truncated_file_is_refused(name, golden_directory, tmp_path):
    whole = (golden_directory / "weights_files" / name).read_bytes()
    for length in range(1, len(whole), 37):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(UserError):
            open_weights(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["dtypes.pt", "training.pt", "torchscript.pt", "views_legacy.pt", "dtypes.safetensors", "dtypes.npz"]
)
def test_flipped_bytes_are_refused_or_leave_the_shapes(name, golden_directory, tmp_path):
    """Whatever is in a file, reading it ends in arrays of the shapes that were told, or in a word to the user."""
    whole = bytearray((golden_directory / "weights_files" / name).read_bytes())
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), size=rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        (tmp_path / name).write_bytes(damaged)
        try:
            with open_weights(tmp_path / name) as weights:
                for key, shape in weights.shapes.items():
                    assert weights.read(key).shape == shape
        except UserError:
            refused += 1
    assert 0 < refused < 300


def test_a_boolean_that_is_neither_is_refused(tmp_path):
    write(tmp_path / "a.safetensors", {"flag": np.array([True, False])})
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(data[:-1] + b"\x07")
    with open_weights(tmp_path / "a.safetensors") as weights, pytest.raises(UserError, match="other than 0 and 1"):
        weights.read("flag")


def test_the_header_is_padded_so_that_tensors_are_aligned(tensors, tmp_path):
    write(tmp_path / "a.safetensors", tensors)
    data = (tmp_path / "a.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert (8 + length) % 64 == 0
    for name, array in tensors.items():
        assert header[name]["data_offsets"][0] % array.dtype.itemsize == 0
