"""Features of a folder of images in one file; it goes on where it was stopped, and names what it could not read."""

import functools
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from vfm_jax.core.errors import TrainingError, UserError
from vfm_jax.core.sharding import batch_sharding, make_mesh, replicated
from vfm_jax.data.decode import EXTENSIONS
from vfm_jax.data.sources.folder import images_below
from vfm_jax.evaluators.features import POOLS
from vfm_jax.weights.load import Pretrained, load_pretrained

T = TypeVar("T")
ENDINGS = (".npz", ".parquet")
PART_IMAGES = 512  # images a part holds: what is lost at most when the process is killed


class Embedded(NamedTuple):
    """What was written.

    Attributes:
        path: the file.
        num_images: rows in it.
        width: of a feature.
        bad: images that could not be read, with the reason; they have no row.
        resumed: rows that an earlier, interrupted call had made.
    """

    path: pathlib.Path
    num_images: int
    width: int
    bad: dict[str, str]
    resumed: int


def embed(
    weights: str,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    batch_size: int = 64,
    pool: str = "pooled",
    say: Any = print,
    **given: Any,
) -> Embedded:
    """Writes one feature per image of a folder, with the image's path in the folder as its id.

    An .npz has `ids` and `features` (n, d); a .parquet the columns `id` and `feature`. While it runs, finished parts
    lie in `OUT.parts`; the same call goes on from them. Images that cannot be read are listed in `OUT.bad.jsonl`.

    Args:
        weights: a file, a folder or a name.
        data: folder of images, to any depth.
        out: file to write; its ending says how.
        batch_size: images at a time, over all devices.
        pool: "pooled" (the encoder's own rule), "class" (first token) or "mean_patch".
        say: takes the account of the weights, one string.
        **given: for `load_pretrained`: image_size, heads, family, dtype, ...

    Raises:
        UserError: no image there, an ending that is not known, or parts of another call in the way.
    """
    out, data = pathlib.Path(out).absolute(), pathlib.Path(data)
    if out.suffix not in ENDINGS:
        raise UserError(f"--out={out}: expected a name that ends in {' or '.join(ENDINGS)}.")
    if out.exists():
        raise UserError(f"{out} is there already; give another --out, or remove it first.")
    if pool not in POOLS or pool == "pixels":
        raise UserError(f'--pool={pool}: expected "pooled", "class" or "mean_patch".')
    files = list_images(data)
    loaded = load_pretrained(weights, **given)
    say(str(loaded.account))
    parts = out.with_name(f"{out.name}.parts")
    made_with = {"weights": str(weights), "pool": pool, "given": {k: str(v) for k, v in sorted(given.items())}}
    made_with["part_images"] = PART_IMAGES
    made_with["leaves"] = _fingerprint(loaded.variables)
    made_with["files"] = hashlib.sha256("\n".join(files).encode()).hexdigest()
    _claim(parts, made_with)
    resumed = _run(loaded, data, files, parts, batch_size, pool)
    return _join(parts, out, resumed)


def _fingerprint(variables: Any) -> str:
    """Differs for weights that differ in the beginning of any leaf: another file may lie at the same path."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(variables):
        found.update(np.asarray(leaf.ravel()[:64]).tobytes())
    return found.hexdigest()


def list_images(folder: pathlib.Path) -> list[str]:
    """Paths of all image files below a folder, relative to it, as the source "folder" finds them.

    Raises:
        UserError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise UserError(f"--data: there is no folder {str(folder)!r}.")
    found, _ = images_below(folder)
    if not found:
        raise UserError(f"--data: {str(folder)!r} holds no image ({', '.join(sorted(EXTENSIONS))}), to any depth.")
    return found


def _claim(parts: pathlib.Path, made_with: dict[str, Any]) -> None:
    """Makes the folder of parts, or finds that of the same call."""
    record = parts / "call.json"
    if record.is_file():
        if json.loads(record.read_text()) != made_with:
            raise UserError(
                f"{parts} holds parts of another call (other weights, options or images). Remove it, or give another "
                "--out."
            )
        return
    parts.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(made_with))


def _run(
    loaded: Pretrained, data: pathlib.Path, files: Sequence[str], parts: pathlib.Path, batch_size: int, pool: str
) -> int:
    """Makes the parts that are missing; gives the number of images in those that were there."""
    from rich.progress import Progress, TextColumn, TimeRemainingColumn

    mesh = make_mesh()
    batch_size = -(-batch_size // mesh.size) * mesh.size
    variables = jax.device_put(loaded.variables, replicated(mesh))
    forward = jax.jit(functools.partial(_features, loaded.model, pool), out_shardings=replicated(mesh))
    starts = range(0, len(files), PART_IMAGES)
    missing = [start for start in starts if not _part(parts, start).is_file()]
    resumed = len(files) - sum(min(PART_IMAGES, len(files) - start) for start in missing)
    columns = (*Progress.get_default_columns()[:-1], TextColumn("{task.completed:,.0f}/{task.total:,.0f} images"))
    with Progress(*columns, TimeRemainingColumn()) as progress, ThreadPoolExecutor(os.cpu_count()) as threads:
        task = progress.add_task("embed", total=len(files), completed=resumed)
        for start in missing:
            names = files[start : start + PART_IMAGES]
            rows, bad = [], {}
            batches = (names[i : i + batch_size] for i in range(0, len(names), batch_size))
            for images, unread in _ahead(batches, functools.partial(_read, loaded, data, threads)):
                bad |= unread
                count = len(images)
                if count:
                    padded = np.concatenate([images, np.repeat(images[-1:], batch_size - count, axis=0)])
                    placed = jax.device_put(padded, batch_sharding(mesh))
                    rows.append(np.asarray(forward(variables, placed))[:count])
                progress.update(task, advance=count + len(unread))
            good = [name for name in names if name not in bad]
            _write_part(
                _part(parts, start), good, np.concatenate(rows) if rows else np.zeros((0, 0), np.float32), bad
            )
    return resumed


def _features(model: Any, pool: str, variables: Any, images: jax.Array) -> jax.Array:
    features = model.apply(variables, images, method="encode_image")
    if pool == "class" and not features.num_prefix_tokens:
        raise UserError('--pool=class: this encoder has no class token. Try "pooled" or "mean_patch".')
    return POOLS[pool]({"features": lambda batch: features}, {})


def _read(
    loaded: Pretrained, data: pathlib.Path, threads: ThreadPoolExecutor, names: Sequence[str]
) -> tuple[np.ndarray, dict[str, str]]:
    """The images of `names` that can be read, and why the others cannot."""

    def one(name: str) -> np.ndarray | str:
        try:
            return loaded.preprocessing.one(data / name)
        except (TrainingError, UserError) as error:
            return str(error)

    read = list(threads.map(one, names))
    images = [image for image in read if not isinstance(image, str)]
    unread = {name: image for name, image in zip(names, read, strict=True) if isinstance(image, str)}
    return np.stack(images) if images else np.zeros((0,), np.float32), unread


def _ahead(batches: Iterator[Sequence[str]], read: Callable[[Sequence[str]], T]) -> Iterator[T]:
    """The results of `read`, one being made while the one before it is used."""
    with ThreadPoolExecutor(1) as reader:
        waiting = None
        for batch in batches:
            coming = reader.submit(read, batch)
            if waiting is not None:
                yield waiting.result()
            waiting = coming
        if waiting is not None:
            yield waiting.result()


def _part(parts: pathlib.Path, start: int) -> pathlib.Path:
    return parts / f"{start:010d}.npz"


def _write_part(path: pathlib.Path, ids: Sequence[str], features: np.ndarray, bad: dict[str, str]) -> None:
    temporary = path.with_suffix(".writing")
    with open(temporary, "wb") as file:
        np.savez(file, ids=np.array(ids, np.str_), features=features, bad=np.array(json.dumps(bad)))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def _join(parts: pathlib.Path, out: pathlib.Path, resumed: int) -> Embedded:
    """Makes the file of the parts and removes them."""
    ids, rows, bad = [], [], {}
    for path in sorted(parts.glob("*.npz")):
        with np.load(path, allow_pickle=False) as part:
            ids += part["ids"].tolist()
            rows += [part["features"]] if part["features"].size else []
            bad |= json.loads(str(part["bad"]))
    if not rows:
        listed = "; ".join(f"{name}: {reason}" for name, reason in list(bad.items())[:3])
        raise UserError(f"None of the {len(bad)} images could be read. {listed}")
    features = np.concatenate(rows)
    temporary = out.with_name(f".{out.name}.writing")
    if out.suffix == ".npz":
        with open(temporary, "wb") as file:
            np.savez(file, ids=np.array(ids, np.str_), features=features)
    else:
        _write_parquet(temporary, ids, features)
    temporary.rename(out)
    listed = out.with_name(f"{out.name}.bad.jsonl")
    listed.unlink(missing_ok=True)
    if bad:
        lines = (json.dumps({"id": name, "reason": reason}) for name, reason in bad.items())
        listed.write_text("\n".join(lines) + "\n")
    shutil.rmtree(parts)
    return Embedded(out, len(ids), features.shape[1], bad, resumed)


def _write_parquet(path: pathlib.Path, ids: Sequence[str], features: np.ndarray) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise UserError(
            "A .parquet needs pyarrow (pip install pyarrow); or give an --out that ends in .npz."
        ) from error
    column = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
    pq.write_table(pa.table({"id": pa.array(ids), "feature": column}), path)
