"""What a file is, by its first bytes; and for what people download by mistake, what it is and what to do."""

from collections.abc import Callable

from vfm_jax.core.errors import UserError
from vfm_jax.weights.files.archive import members
from vfm_jax.weights.files.interface import Contents
from vfm_jax.weights.files.mapped import MappedFile
from vfm_jax.weights.files.npz import read_npz
from vfm_jax.weights.files.safetensors import read_safetensors
from vfm_jax.weights.files.torch_archive import LEGACY_START, read_torch_archive, read_torch_stream

READERS: dict[str, Callable[[MappedFile], Contents]] = {
    "safetensors": read_safetensors,
    "torch": read_torch_archive,
    "torch (before 1.6)": read_torch_stream,
    "npz": read_npz,
}
PROMISED = {
    ".safetensors": "safetensors",
    ".npz": "npz",
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar"), "torch"),  # MoCo's are called .pth.tar
}
_UNPACK = "is an archive. Unpack it, and name the file of weights inside."
_FOREIGN = {  # first bytes -> what it is, and the next move
    b"version https://git-lfs": "is a Git LFS pointer, not the weights. Run `git lfs pull` there, or download it.",
    b"\x1f\x8b": _UNPACK,
    b"BZh": _UNPACK,
    b"\xfd7zXZ": _UNPACK,
    b"Rar!": _UNPACK,
    b"7z\xbc\xaf": _UNPACK,
    b"\x28\xb5\x2f\xfd": _UNPACK,
    b"\x93NUMPY": "is a single array. Put it into an .npz with numpy.savez(path, name=array).",
    b"\x89HDF": "is HDF5 (Keras), which is not read here. Save the weights as safetensors.",
    b"GGUF": "is GGUF, which is not read here. Take the safetensors of the same weights.",
    b"\x08": "looks like ONNX, which is not read here. Take the safetensors of the same weights.",
}


def recognise(file: MappedFile) -> str:
    """The key of `READERS` for a file.

    Raises:
        UserError: it is none of them, or not what its name promises; the message says what it is.
    """
    start = file.bytes(0, 512)
    kind = _kind(file, start)
    if kind is None:
        raise UserError(f"{file.path} {_instead(file, start)}")
    promised = PROMISED.get(file.path.suffix.lower())
    if promised is not None and not kind.startswith(promised):
        ending = next(ending for ending, format in PROMISED.items() if kind.startswith(format))
        raise UserError(
            f"{file.path} is not what its name says: it is a file of {kind}. "
            f"If that is what you meant to have, rename it to {file.path.stem}{ending}."
        )
    return kind


def _kind(file: MappedFile, start: bytes) -> str | None:
    if start.startswith(b"PK\x03\x04"):
        names = members(file)
        if any(name.endswith("/data.pkl") for name in names):
            return "torch"
        return "npz" if names and all(name.endswith(".npy") for name in names) else None
    if start.startswith(LEGACY_START):
        return "torch (before 1.6)"
    if len(start) > 8 and start[8:9] == b"{" and file.path.suffix.lower() not in _TEXT:
        return "safetensors"
    return None


_TEXT = {".json", ".txt", ".html"}


def _instead(file: MappedFile, start: bytes) -> str:
    if not start:
        return "is empty. Download it again."
    for first, what in _FOREIGN.items():
        if start.startswith(first):
            return what
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page, not weights: the server sent an error or a log-in page. Download it again, logged in."
    if text.startswith((b"{", b"[")):
        return "is JSON, not weights. If a server sent it, it says why; otherwise name the file beside it."
    if start.startswith(b"PK"):
        return (
            "is a zip archive, but of neither torch.save nor NumPy. Unpack it, and name the file of weights inside."
        )
    if start[257:262] == b"ustar":
        return _UNPACK
    if start[:1] == b"\x80":
        return (
            "is a bare Python pickle, which can run anything when it is loaded, and is not read here. "
            "If you trust it, load it where it was made and save its arrays with numpy.savez or safetensors."
        )
    if not any(start):
        return "holds zeros: a download that was never finished. Download it again."
    return (
        f"is no file of weights known here (it begins with {start[:8]!r}). Known: safetensors, .pth of torch, .npz."
    )
