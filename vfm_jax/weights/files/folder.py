"""Opens a file of weights, or a folder laid out as the model hub's libraries do."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from vfm_jax.core.errors import UserError
from vfm_jax.weights.files.interface import Contents, Tensor, WeightsFile
from vfm_jax.weights.files.mapped import MappedFile
from vfm_jax.weights.files.recognise import READERS, recognise

# In order of preference: what runs no code first, then what transformers and timm take before open_clip's.
STANDARD = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
ENDINGS = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar")
_MAX_JSON = 50_000_000  # bytes; the index of a file of 100,000 tensors takes 10 million


def open_weights(path: str | pathlib.Path) -> WeightsFile:
    """The weights at `path`; nothing but their description is read yet.

    Args:
        path: of a file (safetensors, torch's .pth/.pt/.bin, .npz), or of a folder with one of the `STANDARD` names or
            a single file of weights. `config.json` and `preprocessor_config.json` are taken from beside a standard
            name, and from the folder where the folder was named.

    Raises:
        UserError: nothing is there, it is something else (said what, with the next move), or it is damaged.
    """
    path = pathlib.Path(path).expanduser()
    if not path.exists():
        raise UserError(f"There is nothing at {path}.")
    file, note = _choose(path) if path.is_dir() else (path, "")
    if file.name.endswith(".index.json"):
        format, contents, files = _shards(file)
    else:
        format, contents, files = _single(file)
    with_config = path.is_dir() or file.name in STANDARD
    config = "open_clip_config.json" if file.name.startswith("open_clip_") else "config.json"
    try:
        return WeightsFile(
            path,
            format,
            contents._replace(note="; ".join(filter(None, (note, contents.note)))),
            size_bytes=sum(opened.size for opened in files),
            close=lambda: _close(files),
            config=_json(file.with_name(config)) if with_config else None,
            preprocessor=_json(file.with_name("preprocessor_config.json")) if with_config else None,
        )
    except UserError:
        _close(files)
        raise


def _choose(folder: pathlib.Path) -> tuple[pathlib.Path, str]:
    """The file to read of a folder, and what to say of the choice."""
    there = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(ENDINGS) and entry.is_file())
    for name in STANDARD:
        if (folder / name).is_file():
            shards = set(weight_map(folder / name).values()) if name.endswith(".index.json") else set()
            others = [other for other in there if other != name and other not in shards]
            return folder / name, f"{name} was taken, not {', '.join(others)}" if others else ""
    if len(there) == 1:
        return folder / there[0], f"{there[0]} was taken"
    if not there:
        raise UserError(f"The folder {folder} holds no weights. Expected one of: {', '.join(STANDARD)}.")
    raise UserError(f"The folder {folder} holds several files of weights: {', '.join(there[:20])}. Name one of them.")


def _single(path: pathlib.Path) -> tuple[str, Contents, list[MappedFile]]:
    file = MappedFile(path)
    try:
        kind = recognise(file)
        return kind.split()[0], READERS[kind](file), [file]
    except BaseException:
        file.close()
        raise


def _shards(index: pathlib.Path) -> tuple[str, Contents, list[MappedFile]]:
    places = weight_map(index)
    names = sorted(set(places.values()))
    absent = [name for name in names if not index.with_name(name).is_file()]
    if absent:
        raise UserError(
            f"{index} lists {len(names)} files, and {len(absent)} are not there: {', '.join(absent[:5])}. "
            f"Download them into {index.parent}."
        )
    files: list[MappedFile] = []
    found: dict[str, Tensor] = {}
    formats, metadata = set(), {}
    try:
        for name in names:
            format, contents, opened = _single(index.with_name(name))
            files += opened
            formats.add(format)
            metadata |= contents.metadata
            announced = {tensor for tensor, place in places.items() if place == name}
            if announced != set(contents.tensors):
                odd = min(announced ^ set(contents.tensors))
                raise UserError(f"{index} and {name} do not agree about {odd[:100]!r}. Download both again.")
            found |= contents.tensors
        if len(formats) != 1:
            raise UserError(f"{index} lists files of several formats: {', '.join(sorted(formats))}.")
    except BaseException:
        _close(files)
        raise
    return formats.pop(), Contents({name: found[name] for name in places}, metadata), files


def weight_map(index: pathlib.Path) -> dict[str, str]:
    """Tensor -> the file beside the index that holds it."""
    places = (_json(index) or {}).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{index} has no weight_map. Download it again.")
    for name in set(map(str, places.values())):
        if name in ("", ".", "..") or "\0" in name or pathlib.PurePath(name).name != name or "\\" in name:
            raise UserError(f"{index} is refused: it lists {name[:100]!r}, which is not beside it.")
    return {str(tensor): str(place) for tensor, place in places.items()}


def _json(path: pathlib.Path) -> Mapping[str, Any] | None:
    """The object in the file; None where there is no file."""
    if not path.is_file():
        return None
    if path.stat().st_size > _MAX_JSON:
        raise UserError(
            f"{path} has {path.stat().st_size:,} bytes; a description of weights has less than {_MAX_JSON:,}."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({str(error)[:150]}). Download it again.") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no object. Download it again.")
    return found


def _close(files: list[MappedFile]) -> None:
    for file in files:
        file.close()
