"""Images with texts: a table of captions, COCO's json, a text beside each image, or tar shards of such."""

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import nearest
from vfm_jax.data.bad import BadSample
from vfm_jax.data.decode import EXTENSIONS, Picture, Reading
from vfm_jax.data.sources.columns import IMAGE_COLUMNS, chosen_column, needed_column, rows_of_text
from vfm_jax.data.sources.files import Files, Finder, Folder, Paths, Shards, is_image, open_files
from vfm_jax.data.sources.location import existing
from vfm_jax.data.sources.records import ImageFiles, reads_images
from vfm_jax.data.sources.splits import ALL, parse_split, rows_of
from vfm_jax.data.tokenizer import LEARNED, Tokenizer, make_tokenizer

_TABLES = (".csv", ".tsv", ".txt")
TEXT_COLUMNS = ("caption", "text", "description", "title", "comment")
_LEARNED_FROM = 200_000  # records whose captions make a learned vocabulary; evenly spaced where there are more

Captions = Sequence[str]


class Texts(NamedTuple):
    """How the captions of one image become the fields of an example.

    Attributes:
        tokenizer: text -> ids.
        length: ids of each text.
        most: texts of an image at most; the first ones count.
    """

    tokenizer: Tokenizer
    length: int
    most: int

    def fields(self, captions: Captions) -> dict[str, np.ndarray]:
        """`texts` (t l), zeros where there are fewer, and `num_texts`; int32."""
        chosen = captions[: self.most]
        ids = np.zeros((self.most, self.length), np.int32)
        for row, caption in zip(ids, chosen, strict=False):
            row[:] = self.tokenizer.encode(caption, self.length)
        return {"texts": ids, "num_texts": np.asarray(len(chosen), np.int32)}


class PairSource(ImageFiles):
    """Image files and their captions, read when asked for. See `vfm_jax.data.sources.Source`."""

    def __init__(
        self,
        files: Files,
        images: list[str],
        captions: list[Captions] | None,
        sidecars: list[str] | None,
        texts: Texts,
        reading: Reading,
    ):
        """Takes names of images and, of each, its captions or the name of the file beside it."""
        super().__init__(files, images, None, None, reading)
        self._texts, self._captions, self._sidecars = texts, captions, sidecars
        self.tokenizer = texts.tokenizer
        self.text_shape = (texts.most, texts.length)

    def read(self, index: int, picture: Picture) -> dict[str, np.ndarray]:
        return super().read(index, picture) | self._texts.fields(self.captions(index))

    def captions(self, index: int) -> Captions:
        """The texts of a record."""
        if self._captions is not None:
            return self._captions[index]
        assert self._sidecars is not None
        return (_read_sidecar(self._files, self._sidecars[index]),)


@reads_images(canvas_size=256)
def pairs(
    path: str,
    *,
    reading: Reading,
    captions: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    split: str | None = None,
    skip_missing: bool = False,
    tokenizer: Mapping[str, Any] | Tokenizer = LEARNED,
    text_length: int = 64,
    max_texts: int | None = None,
) -> PairSource:
    """Images and the texts that describe them, in the order of the images' names.

    The captions are found by themselves: files KEY.txt or KEY.json (field "caption") beside KEY.jpg, as in
    webdataset shards; or one table or COCO json with "caption" in its name. A table has a row for each text, and its
    columns of images and texts are known by their names; rows of one image are its texts. In training one text of an
    image is drawn in each epoch, and in evaluation the first stands for it.

    Args:
        path: a folder; tar shards, as for `tars`; or the table or json itself, beside its images.
        reading: made of the keywords of `data.decode.reading`; the canvas has 256 pixels a side by default.
        captions: the table (.csv, .tsv, .txt) or COCO json, by its path in the folder or tar; needed among several.
        image_column: column of the images' names; by default the first of the usual ones.
        text_column: column of the texts; the same.
        split: a part of the images, as "all[:90%]". An image is in one part, with all of its texts.
        skip_missing: do without texts whose image is not there, and images without a text.
        tokenizer: of `data.tokenizer`, by name with its keywords.
        text_length: token ids of each text; longer ones are cut.
        max_texts: of an image, the first so many; None for all. Of a KEY.txt the whole is one text.

    Raises:
        UserError: nothing there, no captions or several kinds of them, images without texts or texts without images.
    """
    for field, value in {"text_length": text_length, "max_texts": max_texts}.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"config.data.{field} is {value!r}; expected a whole number, one or more.")
    files, captions = _opened(path, captions)
    found, missing = _find(files, captions, image_column, text_column)
    if not found or (missing and not skip_missing):
        raise UserError(_lacking(files, found, missing))
    images = sorted(found)
    part = parse_split(split)
    if part.name != ALL:
        raise UserError(
            f"split is {split!r}; pairs have no named splits. Take a part, as 'all[:90%]', or the table or json of "
            "that split: config.data.captions='annotations/captions_val2017.json'."
        )
    if (part.start, part.stop) != (0, 100):
        images = [images[row] for row in rows_of(part, images)]
    held = [found[image] for image in images]
    sidecars = [one for one in held if isinstance(one, str)]
    listed: list[Captions] = [tuple(one) for one in held if not isinstance(one, str)]

    def at_hand() -> Iterator[str]:
        for row in np.unique(np.linspace(0, len(images) - 1, min(len(images), _LEARNED_FROM)).astype(int)):
            yield from listed[row] if listed else (_read_sidecar(files, sidecars[row]),)

    most = max(map(len, listed), default=1)
    texts = Texts(make_tokenizer(tokenizer, at_hand), text_length, min(most, max_texts or most))
    return PairSource(files, images, listed or None, sidecars or None, texts, reading)


def _opened(path: str, captions: str | None) -> tuple[Files, str | None]:
    """The files, and the name among them of the captions where the path says it."""
    if os.path.splitext(path)[1].lower() in (*_TABLES, ".json") and captions is None:
        table = existing(path, "config.data.path")
        return Folder(table.parent), table.name
    return open_files(path), captions


# -------------------------------------------------------------------------------------------- which text, which image

Found = dict[str, list[str] | str]  # image -> its texts, or the name of the file that has its text
Missing = list[str]  # what stands alone, in words


def _find(
    files: Files, captions: str | None, image_column: str | None, text_column: str | None
) -> tuple[Found, Missing]:
    images = [name for name in files.names if is_image(name)]
    if not images:
        raise UserError(f"No images in {files.describe()}: looked for {', '.join(EXTENSIONS)}, to any depth.")
    if captions is None:
        beside = _sidecars(files.names, images)
        if beside:
            return dict(beside), [f"{image} has no text" for image in images if image not in beside]
        captions = _only_candidate(files)
    elif captions not in files.names:
        raise UserError(
            f"config.data.captions is {captions!r}, which is not in {files.describe()}."
            f"{nearest(captions, _candidates(files.names))}"
        )
    try:
        text = files.read(captions).decode("utf-8-sig")
        if captions.lower().endswith(".json"):
            rows = _coco_rows(json.loads(text))
        else:
            rows = _table_rows(text, image_column, text_column)
        rows = list(rows)
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{files.describe(captions)} cannot be read as captions: {error!r}.") from error
    return _matched(rows, images, os.path.dirname(captions))


def _sidecars(names: Iterable[str], images: Iterable[str]) -> dict[str, str]:
    """The file of each image's text: KEY.txt, or else KEY.json; a key ends at the first dot, as in webdataset."""
    keys = {}
    for name in names:
        folder, base = os.path.split(name)
        if base.endswith((".json", ".txt")):
            key = (folder, base.partition(".")[0])
            if key not in keys or base.endswith(".txt"):
                keys[key] = name
    return {
        image: keys[key] for image in images if (key := (os.path.dirname(image), _stem(image))) in keys
    }  # fmt: skip


def _stem(name: str) -> str:
    return os.path.basename(name).partition(".")[0]


def _read_sidecar(files: Paths | Shards, name: str) -> str:
    try:
        text = files.read(name).decode()
        if not name.endswith(".json"):
            return text
        fields = json.loads(text)
        return str(next(fields[field] for field in TEXT_COLUMNS if field in fields))
    except (UnicodeDecodeError, json.JSONDecodeError, StopIteration, TypeError) as error:
        raise BadSample(files.describe(name), "corrupt", f"the text cannot be read ({error!r})") from error


def _candidates(names: Iterable[str]) -> list[str]:
    return [name for name in names if os.path.splitext(name)[1].lower() in (*_TABLES, ".json")]


def _only_candidate(files: Files) -> str:
    """The one file that looks like a table of captions."""
    tables = _candidates(files.names)
    named = [name for name in tables if "caption" in os.path.basename(name).lower()]
    chosen = named or [name for name in tables if name.lower().endswith((".csv", ".tsv"))]
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise UserError(
            f"{files.describe()} has several tables of captions: {', '.join(chosen[:6])}. "
            f"Choose one: config.data.captions={chosen[0]!r}."
        )
    shown = f" It has {', '.join(tables[:4])}: config.data.captions={tables[0]!r}?" if tables else ""
    raise UserError(
        f"No captions in {files.describe()}: looked for a .txt or .json beside each image, and for a table or json "
        f"with 'caption' in its name.{shown}"
    )


def _coco_rows(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(image, text) of COCO's captions, in the order of their ids."""
    files = {image["id"]: image["file_name"] for image in content["images"]}
    for annotation in sorted(content["annotations"], key=lambda a: a["id"]):
        yield files[annotation["image_id"]], annotation["caption"]


def _table_rows(text: str, image_column: str | None, text_column: str | None) -> Iterator[tuple[str, str]]:
    """(image, text) of a table: with a header, or Flickr's form without one, `image.jpg#0 <tab> text`."""
    rows = rows_of_text(text)
    header = [column.strip() for column in next(rows, [])]
    named = [
        chosen_column(header, given, usual, field)
        for given, usual, field in (
            (image_column, IMAGE_COLUMNS, "image_column"),
            (text_column, TEXT_COLUMNS, "text_column"),
        )
    ]
    if None in named and len(header) == 2 and is_image(_unnumbered(header[0])):
        image, caption = 0, 1
        yield _unnumbered(header[0]), header[1]
    else:
        image = header.index(needed_column(header, image_column, IMAGE_COLUMNS, "image_column"))
        caption = header.index(needed_column(header, text_column, TEXT_COLUMNS, "text_column"))
    for row in rows:
        if len(row) > max(image, caption):
            yield _unnumbered(row[image].strip()), row[caption].strip()


def _unnumbered(image: str) -> str:
    """Without Flickr's number of the caption, `image.jpg#3`."""
    return re.sub(r"#\d+$", "", image)


def _matched(rows: list[tuple[str, str]], images: list[str], folder: str) -> tuple[Found, Missing]:
    """The texts of each image; a row names it by its path, from the top or from the table, or by its name alone."""
    finder = Finder(images)
    found: dict[str, list[str]] = {}
    missing: Missing = []
    for name, text in rows:
        image = finder.find(name, ("", folder))
        if image is None or not text:
            missing.append(f"{name} is not there" if image is None else f"{name} has an empty text")
        else:
            found.setdefault(image, []).append(text)
    return dict(found), missing  # images that no row names may belong to another table


def _lacking(files: Files, found: Found, missing: Missing) -> str:
    shown = "".join(f"\n  {line}" for line in missing[:3]) + ("\n  ..." if len(missing) > 3 else "")
    if not found:
        return f"In {files.describe()} no text belongs to an image:{shown}\nLook at config.data.captions."
    return (
        f"In {files.describe()}, {len(found)} images have texts, and {len(missing)} texts or images stand alone:"
        f"{shown}\nSet config.data.skip_missing=True to do without them."
    )
