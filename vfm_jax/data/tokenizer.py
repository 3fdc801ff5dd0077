"""Captions to token ids: CLIP's byte pairs, sentencepiece and Hugging Face files, or byte pairs learned at hand.

Every tokenizer gives as many ids as it is asked for: what is longer is cut, and keeps the end token; what is shorter
is filled up. None reads the network: vocabularies are local files.
"""

import collections
import functools
import gzip
import heapq
import html
import importlib
import itertools
import json
import pathlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import build, keywords, lookup

_MAX_BYTES = 2**26  # of a vocabulary's file, unpacked: 64 MB
_WORDS_KEPT = 2**16  # whose pieces are remembered
_END_OF_WORD = "</w>"
_VERSION = "#version: 0.2"
LEARNED: Mapping[str, Any] = {"name": "learned"}  # needs no file, so it is what sources do by default


class Tokenizer(Protocol):
    """What turns a text into ids. It can be pickled, and used from several threads.

    Attributes:
        vocabulary_size: every id is below it.
        end_id: stands after the last token of each text.
        padding_id: fills up what is short.
        file: name and content by which the same tokenizer can be had again.
    """

    vocabulary_size: int
    end_id: int
    padding_id: int
    file: tuple[str, bytes]

    def encode(self, text: str, length: int) -> Int[np.ndarray, " length"]: ...


def make_tokenizer(
    spec: Mapping[str, Any] | Tokenizer, captions: Callable[[], Iterable[str]], where: str = "config.data.tokenizer"
) -> Tokenizer:
    """The tokenizer that `spec` names, or `spec` itself where it is one.

    Args:
        spec: `name` and keywords of an entry of `TOKENIZERS`.
        captions: gives the texts at hand, for a vocabulary that is learned.
        where: path of `spec`, for messages.

    Raises:
        UserError: an unknown name or field, or a file that is not there or is none of its kind.
    """
    if not isinstance(spec, Mapping):
        return spec
    function = lookup(TOKENIZERS, spec.get("name"), f"{where}.name")
    given = {"captions": captions} if "captions" in keywords(function) else {}
    return build(TOKENIZERS, spec, where, **given)


def _fitted(ids: list[int], length: int, padding: int) -> Int[np.ndarray, " length"]:
    """`ids`, the last of which is the end token, cut before it or filled up."""
    row = np.full(length, padding, np.int32)
    row[: len(ids)] = ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]
    return row


def _there(path: str, where: str) -> pathlib.Path:
    from vfm_jax.data.sources.location import existing  # the sources need this file first

    return existing(path, where)


def _content(path: str, where: str) -> bytes:
    """A file in full, unpacked where it is named .gz.

    Raises:
        UserError: it is not there, is too large, or cannot be read.
    """
    file = _there(path, where)
    try:
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as opened:
            content = opened.read(_MAX_BYTES + 1)
    except (OSError, EOFError) as error:
        raise UserError(f"{where}: cannot read {file}: {error}") from error
    if len(content) > _MAX_BYTES:
        raise UserError(f"{where}: {file} is larger than {_MAX_BYTES} bytes; that is no vocabulary.")
    return content


# ------------------------------------------------------------------------------------------------------- byte pairs


@functools.cache
def _byte_characters() -> dict[int, str]:
    """A printable character for each byte, in the order of the ids: GPT-2's table, in which CLIP's files are."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


@functools.cache
def _word_pattern() -> re.Pattern[str]:
    """CLIP's words: English endings, runs of letters, single digits, runs of anything else but space."""
    # \w is letters, numbers and _; \d only decimal digits. These are the other numbers, such as ½ and Ⅻ.
    numbers = "".join(c for c in map(chr, range(2**17)) if unicodedata.category(c) in ("Nl", "No"))
    return re.compile(rf"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_{numbers}]+|[\d{numbers}]|(?:[^\w\s]|_)+", re.IGNORECASE)


def words_of(text: str) -> list[str]:
    """A caption in words: HTML entities read, spaces evened, lower case."""
    clean = " ".join(html.unescape(html.unescape(text)).split())
    return _word_pattern().findall(clean.lower())


def _symbols(word: str) -> tuple[str, ...]:
    """The bytes of a word, the last one marked as its end."""
    characters = [_byte_characters()[byte] for byte in word.encode()]
    return (*characters[:-1], characters[-1] + _END_OF_WORD)


class BytePairs:
    """Byte pair encoding as CLIP does it: <start> words </end>, filled up with zeros. See `Tokenizer`.

    The end token has the highest id, so a text tower that pools at the highest id finds it. Broken encodings are not
    mended as the authors' code does with ftfy, and a caption cannot spell the start or the end token.

    Reference: Sennrich et al., 2015 (arXiv:1508.07909), Alg. 1; Radford et al., 2021 (arXiv:2103.00020), Sec. 2.4.
    """

    padding_id = 0

    def __init__(self, merges: list[tuple[str, str]]):
        """Takes the pairs that become one symbol, the most important first."""
        letters = list(_byte_characters().values())
        vocabulary = [*letters, *(letter + _END_OF_WORD for letter in letters), *(a + b for a, b in merges)]
        self._merges = merges
        self._rank = {pair: i for i, pair in enumerate(merges)}
        self._id = {symbol: i for i, symbol in enumerate(vocabulary)}
        self._known: dict[str, list[int]] = {}
        self._start_id = len(vocabulary)
        self.end_id = len(vocabulary) + 1
        self.vocabulary_size = len(vocabulary) + 2

    @property
    def file(self) -> tuple[str, bytes]:
        """Merges in the form of CLIP's own file, for `tokenizer=dict(name="clip", path=...)`."""
        lines = [_VERSION, *(f"{a} {b}" for a, b in self._merges)]
        return "tokenizer_merges.txt", ("\n".join(lines) + "\n").encode()

    def encode(self, text: str, length: int) -> Int[np.ndarray, " length"]:
        ids = [i for word in words_of(text) for i in self._pieces(word)]
        return _fitted([self._start_id, *ids, self.end_id], length, self.padding_id)

    def _pieces(self, word: str) -> list[int]:
        found = self._known.get(word)
        if found is None:
            symbols = list(_symbols(word))
            while len(symbols) > 1:
                pairs = list(itertools.pairwise(symbols))
                best = min(pairs, key=lambda pair: self._rank.get(pair, len(self._rank)))
                if best not in self._rank:
                    break
                symbols = _joined(symbols, best)
            found = [self._id[symbol] for symbol in symbols]
            if len(self._known) < _WORDS_KEPT:
                self._known[word] = found
        return found


def _joined(symbols: Iterable[str], pair: tuple[str, str]) -> list[str]:
    """The symbols with every such pair, from the left, made one."""
    made: list[str] = []
    for symbol in symbols:
        if made and (made[-1], symbol) == pair:
            # what was just joined cannot be the left of another pair: it is another symbol now
            made[-1] += symbol
        else:
            made.append(symbol)
    return made


def clip_tokenizer(*, path: str, vocabulary: int = 49408) -> BytePairs:
    """CLIP's byte pairs from its own file, bpe_simple_vocab_16e6.txt.gz, or from a merges.txt of the same form.

    Args:
        path: the file.
        vocabulary: number of ids; merges of the file beyond it are left out, as CLIP's code does.

    Raises:
        UserError: no such file, or lines that are no pairs.
    """
    where = "config.data.tokenizer.path"
    try:
        lines = _content(path, where).decode().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: {path} is no text file of merges.") from error
    pairs = [tuple(line.split()) for line in lines[1:] if line.strip()]  # the first line is a version
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise UserError(f"{where}: {path} does not have a pair of symbols on every line after the first.")
    return BytePairs([(a, b) for a, b in pairs][: vocabulary - 514])  # 2 x 256 bytes, start and end


def learned_tokenizer(*, vocabulary: int = 4096, captions: Callable[[], Iterable[str]]) -> BytePairs:
    """Byte pairs of the captions at hand: for other languages and fields, and where no vocabulary is at hand.

    The same captions give the same vocabulary, on every machine. A run keeps it in its workdir.

    Args:
        vocabulary: number of ids at most; at least 514. Pairs that occur once are not joined.
        captions: the texts.

    Raises:
        UserError: fewer ids than bytes, or no captions.
    """
    if vocabulary < 514:
        raise UserError(f"config.data.tokenizer.vocabulary is {vocabulary}; expected at least 514 (bytes, ends).")
    counts = collections.Counter(word for caption in captions() for word in words_of(caption))
    if not counts:
        raise UserError("There are no captions to learn a vocabulary from; look at config.data.")
    return BytePairs(learn_merges(counts, vocabulary - 514))


def learn_merges(counts: Mapping[str, int], num_merges: int) -> list[tuple[str, str]]:
    """The pairs to join, most frequent first; of equally frequent ones the first in alphabetical order.

    Reference: Sennrich et al., 2015 (arXiv:1508.07909), Alg. 1.
    """
    words = [(_symbols(word), count) for word, count in sorted(counts.items())]
    frequency: collections.Counter[tuple[str, str]] = collections.Counter()
    places: dict[tuple[str, str], set[int]] = collections.defaultdict(set)  # words that have, or had, the pair
    for place, (symbols, count) in enumerate(words):
        for pair in itertools.pairwise(symbols):
            frequency[pair] += count
            places[pair].add(place)
    heap = [(-count, pair) for pair, count in frequency.items()]
    heapq.heapify(heap)
    merges: list[tuple[str, str]] = []
    while heap and len(merges) < num_merges:
        negative, best = heapq.heappop(heap)
        if frequency[best] != -negative:
            continue  # its count has changed since, and stands in the heap anew
        if -negative < 2:
            break
        merges.append(best)
        changed = set()
        for place in places.pop(best):
            symbols, count = words[place]
            joined = tuple(_joined(symbols, best))
            words[place] = (joined, count)
            for pair in itertools.pairwise(symbols):
                frequency[pair] -= count
                changed.add(pair)
            for pair in itertools.pairwise(joined):
                frequency[pair] += count
                places[pair].add(place)
                changed.add(pair)
        for pair in changed:
            heapq.heappush(heap, (-frequency[pair], pair))
    return merges


# --------------------------------------------------------------------------------------------------- other libraries


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"This tokenizer needs the package {name}, which cannot be imported ({error}).\n"
            "Install it with: pip install 'vfm-jax[text]'"
        ) from error


class SentencePiece:
    """A sentencepiece model, with the end token kept when a text is cut. See `Tokenizer`."""

    def __init__(self, model: bytes, lower: bool, padding: int | None):
        """Takes the content of a .model file."""
        self._processor = _library("sentencepiece").SentencePieceProcessor(model_proto=model)
        self._model, self._lower = model, lower
        self.vocabulary_size = self._processor.get_piece_size()
        self.end_id = self._processor.eos_id()
        self.padding_id = self.end_id if padding is None else padding

    @property
    def file(self) -> tuple[str, bytes]:
        """The model as it was read."""
        return "tokenizer.model", self._model

    def encode(self, text: str, length: int) -> Int[np.ndarray, " length"]:
        ids = self._processor.encode(text.lower() if self._lower else text)
        return _fitted([*ids, self.end_id], length, self.padding_id)


def sentencepiece_tokenizer(*, path: str, lower: bool = True, padding: int | None = None) -> SentencePiece:
    """The pieces of a sentencepiece .model file: SigLIP's (C4, 32,000 pieces), or SigLIP 2's (Gemma's, padding=0).

    Args:
        path: the file.
        lower: texts are made lower case first, as in big_vision.
        padding: id that fills up short texts; None for the end token's, as in SigLIP.

    Raises:
        UserError: no such file, no such model, one without an end token, or the package is not installed.
    """
    model = _content(path, "config.data.tokenizer.path")
    try:
        made = SentencePiece(model, lower, padding)
    except (RuntimeError, OSError) as error:
        raise UserError(f"config.data.tokenizer.path: {path} is no sentencepiece model ({error}).") from error
    if made.end_id < 0:
        raise UserError(f"config.data.tokenizer.path: {path} has no end token (</s>).")
    return made


class HuggingFace:
    """A tokenizer.json, with what it puts around a text. See `Tokenizer`."""

    def __init__(self, content: str, end: str, padding: str | None):
        """Takes the content of the file, and the end and padding tokens as they are spelt."""
        self._tokenizer = _library("tokenizers").Tokenizer.from_str(content)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._content = content
        self.vocabulary_size = self._tokenizer.get_vocab_size()
        self.end_id = self._named(end, "end")
        self.padding_id = self.end_id if padding is None else self._named(padding, "padding")

    def _named(self, token: str, field: str) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise UserError(f"config.data.tokenizer.{field} is {token!r}, which the file has no token for.")
        return found

    @property
    def file(self) -> tuple[str, bytes]:
        """The file as it was read."""
        return "tokenizer.json", self._content.encode()

    def encode(self, text: str, length: int) -> Int[np.ndarray, " length"]:
        ids = self._tokenizer.encode(text).ids
        return _fitted(ids if ids[-1:] == [self.end_id] else [*ids, self.end_id], length, self.padding_id)


def huggingface_tokenizer(*, path: str, end: str, padding: str | None = None) -> HuggingFace:
    """A tokenizer.json of the Hugging Face hub: CLIP's (end="<|endoftext|>"), Gemma's (end="<eos>"), and others.

    Args:
        path: the file, or a folder that has it.
        end: the end token as the file spells it; it is appended where the file's own rules do not.
        padding: the token that fills up short texts; None for the end token.

    Raises:
        UserError: no such file or token, or the package is not installed.
    """
    where = "config.data.tokenizer.path"
    file = _there(path, where)
    content = _content(str(file / "tokenizer.json" if file.is_dir() else file), where)
    try:
        json.loads(content)
        return HuggingFace(content.decode(), end, padding)
    except UserError:
        raise
    except Exception as error:  # the package raises bare Exceptions of its own
        raise UserError(f"{where}: {path} is no tokenizer.json ({error}).") from error


TOKENIZERS = {
    "clip": clip_tokenizer,
    "huggingface": huggingface_tokenizer,
    "learned": learned_tokenizer,
    "sentencepiece": sentencepiece_tokenizer,
}


def keep_tokenizer(tokenizer: Tokenizer, folder: pathlib.Path) -> None:
    """Writes the tokenizer's file beside a run, or finds that the run there has the same.

    Raises:
        UserError: the run was begun with another one; its text tower would read other words than it learned.
    """
    name, content = tokenizer.file
    file = folder / name
    if not file.exists():
        file.write_bytes(content)
    elif file.read_bytes() != content:
        raise UserError(
            f"{file} is not the vocabulary that these captions give now: captions or tokenizer have changed.\n"
            'Go on with the old one by config.data.tokenizer = dict(name="clip", path=...) on that file, where it is '
            "one of merges; or start in another --workdir."
        )
