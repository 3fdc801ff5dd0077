"""Texts to ids: words as CLIP cuts them, byte pairs against a plain count, files of other libraries."""

import collections
import gzip
import itertools
import json
import pickle
import sys

import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.data.tokenizer import (
    BytePairs,
    _byte_characters,
    keep_tokenizer,
    learn_merges,
    make_tokenizer,
    words_of,
)

CAPTIONS = (
    "A dog runs on the grass.",
    "Two dogs are running; the third one isn't!",
    "a DOG &amp; a cat's 12 toys",
    "Ein Hund läuft über die Straße",
    "草の上の犬 🐕",
) * 3


def _learned(vocabulary=600, captions=CAPTIONS):
    return make_tokenizer({"name": "learned", "vocabulary": vocabulary}, lambda: captions)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A cat's 12 toys!!", ["a", "cat", "'s", "1", "2", "toys", "!!"]),
        ("I'll  can't\n THEY'RE", ["i", "'ll", "can", "'t", "they", "'re"]),
        ("x_y ½ Ⅻ² été", ["x", "_", "y", "½", "ⅻ", "²", "été"]),
        ("a &amp;amp; b&lt;c", ["a", "&", "b", "<", "c"]),
        ("草の犬🐕.", ["草の犬", "🐕."]),
        ("", []),
    ],
)
def test_words_are_clips(text, words):
    assert words_of(text) == words


def test_every_text_can_be_spelt_and_read_back():
    tokenizer = _learned()
    letters = {symbol: byte for byte, symbol in _byte_characters().items()}
    symbols = {i: symbol for symbol, i in tokenizer._id.items()}
    for text in [*CAPTIONS, "words it has Never seen: ðŋħ 漢字 🤖"]:
        ids = tokenizer.encode(text, 200)
        spelt = "".join(symbols[i] for i in ids[1 : list(ids).index(tokenizer.end_id)]).replace("</w>", " ")
        bytes_of_words = [bytes(letters[c] for c in word) for word in spelt.split(" ") if word]
        assert [word.decode() for word in bytes_of_words] == words_of(text)


def test_a_text_is_filled_up_with_zeros_and_cut_before_its_end():
    tokenizer = _learned()
    short, whole = tokenizer.encode("a dog", 8), tokenizer.encode(CAPTIONS[1], 40)
    assert short.dtype == np.int32
    end = list(short).index(tokenizer.end_id)
    assert tokenizer.end_id == tokenizer.vocabulary_size - 1 == short.max()  # pooling at the highest id finds it
    assert not short[end + 1 :].any()
    cut = tokenizer.encode(CAPTIONS[1], 5)
    np.testing.assert_array_equal(cut, [*whole[:4], tokenizer.end_id])
    np.testing.assert_array_equal(tokenizer.encode("", 3), [tokenizer.end_id - 1, tokenizer.end_id, 0])


def test_merges_are_those_of_counting_anew_after_each():
    counts = collections.Counter(word for caption in CAPTIONS for word in words_of(caption))
    words = {(*word[:-1], word[-1] + "</w>"): n for word, n in counts.items() if word.isascii()}
    expected = []
    for _ in range(25):
        pairs = collections.Counter()
        for symbols, n in words.items():
            for pair in itertools.pairwise(symbols):
                pairs[pair] += n
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        expected.append(best)
        joined = collections.Counter()
        for symbols, n in words.items():
            made, i = [], 0
            while i < len(symbols):
                both = symbols[i : i + 2] == best
                made.append("".join(best) if both else symbols[i])
                i += 2 if both else 1
            joined[tuple(made)] += n
        words = joined
    assert learn_merges({word: n for word, n in counts.items() if word.isascii()}, 25) == expected


def test_learning_is_the_same_in_any_order_and_stops_at_pairs_seen_once():
    assert _learned()._merges == _learned(captions=CAPTIONS[::-1])._merges
    once = _learned(vocabulary=5000, captions=("abc", "xy"))
    assert once.vocabulary_size == 514


@pytest.mark.parametrize("packed", [False, True])
def test_a_learned_vocabulary_is_a_file_like_clips(tmp_path, packed):
    learned = _learned()
    name, content = learned.file
    file = tmp_path / (name + ".gz" if packed else name)
    file.write_bytes(gzip.compress(content) if packed else content)
    read = make_tokenizer({"name": "clip", "path": str(file)}, lambda: ())
    for caption in CAPTIONS:
        np.testing.assert_array_equal(read.encode(caption, 30), learned.encode(caption, 30))
    fewer = make_tokenizer({"name": "clip", "path": str(file), "vocabulary": 520}, lambda: ())
    assert fewer.vocabulary_size == 520
    assert fewer._merges == learned._merges[:6]


def test_a_tokenizer_travels_to_other_processes():
    learned = _learned()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(learned)).encode("a dog", 9), learned.encode("a dog", 9))


def test_a_run_keeps_its_vocabulary(tmp_path):
    keep_tokenizer(_learned(), tmp_path)
    keep_tokenizer(_learned(), tmp_path)
    assert (tmp_path / "tokenizer_merges.txt").is_file()
    with pytest.raises(UserError, match="captions or tokenizer have changed"):
        keep_tokenizer(_learned(captions=("other words here", "other words")), tmp_path)


def test_what_cannot_be_used_is_refused_in_words(tmp_path):
    broken = tmp_path / "merges.txt"
    broken.write_text("#version\na b c\n")
    for spec, message in (
        ({"name": "bpe"}, "Unknown name 'bpe'"),
        ({"name": "learned", "vocabulary": 100}, "at least 514"),
        ({"name": "clip", "path": str(tmp_path / "none.txt")}, "none.txt"),
        ({"name": "clip", "path": str(broken)}, "a pair of symbols on every line"),
        ({"name": "clip", "path": str(broken), "lower": True}, "Unknown field"),
    ):
        with pytest.raises(UserError, match=message):
            make_tokenizer(spec, lambda: CAPTIONS)
    with pytest.raises(UserError, match="no captions"):
        _learned(captions=())


@pytest.mark.parametrize("name", ["sentencepiece", "tokenizers"])
def test_a_missing_package_is_named_with_what_to_install(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    file = tmp_path / "vocabulary"
    file.write_text("{}")
    spec = {"sentencepiece": {"name": "sentencepiece"}, "tokenizers": {"name": "huggingface", "end": "</s>"}}[name]
    with pytest.raises(UserError, match=r"vfm-jax\[text\]"):
        make_tokenizer({**spec, "path": str(file)}, lambda: ())


def test_sentencepiece_keeps_the_end_token(tmp_path):
    library = pytest.importorskip("sentencepiece")
    library.SentencePieceTrainer.train(
        sentence_iterator=iter([caption.lower() for caption in CAPTIONS]),
        model_prefix=str(tmp_path / "small"), vocab_size=70, bos_id=-1, eos_id=1, unk_id=2, pad_id=0,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    spec = {"name": "sentencepiece", "path": str(tmp_path / "small.model")}
    tokenizer = make_tokenizer(spec, lambda: ())
    ids = tokenizer._processor.encode("a dog runs")
    np.testing.assert_array_equal(tokenizer.encode("A Dog Runs", 12), [*ids, *[1] * (12 - len(ids))])
    np.testing.assert_array_equal(tokenizer.encode("A Dog Runs", 4), [*ids[:3], 1])
    assert make_tokenizer({**spec, "padding": 0}, lambda: ()).encode("a", 30)[-1] == 0
    again = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(again.encode("a dog", 9), tokenizer.encode("a dog", 9))
    (tmp_path / "other").write_text("{}")
    with pytest.raises(UserError, match="no sentencepiece model"):
        make_tokenizer({**spec, "path": str(tmp_path / "other")}, lambda: ())


def test_hugging_faces_byte_pairs_are_ours(tmp_path):
    """The same merges, in a tokenizer.json as CLIP's on the hub is made."""
    library = pytest.importorskip("tokenizers")
    ours = _learned()
    symbols = {**ours._id, "<|startoftext|>": ours.end_id - 1, "<|endoftext|>": ours.end_id}
    merges = [list(pair) for pair in ours._merges]
    model = library.models.BPE(vocab=symbols, merges=[tuple(m) for m in merges], end_of_word_suffix="</w>")
    theirs = library.Tokenizer(model)
    theirs.normalizer = library.normalizers.Lowercase()
    pattern = library.Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    theirs.pre_tokenizer = library.pre_tokenizers.Sequence([
        library.pre_tokenizers.Split(pattern, "removed", invert=True),
        library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    theirs.save(str(tmp_path / "tokenizer.json"))
    spec = {"name": "huggingface", "path": str(tmp_path), "end": "<|endoftext|>"}
    tokenizer = make_tokenizer(spec, lambda: ())
    assert tokenizer.vocabulary_size == ours.vocabulary_size
    for caption in (CAPTIONS[0], CAPTIONS[1], CAPTIONS[3], CAPTIONS[4]):
        expected = ours.encode(caption, 60)
        length = list(expected).index(ours.end_id)
        np.testing.assert_array_equal(tokenizer.encode(caption, 60)[:length], expected[1 : length + 1])
    np.testing.assert_array_equal(tokenizer.encode(CAPTIONS[1], 4)[-1], ours.end_id)
    with pytest.raises(UserError, match="no token for"):
        make_tokenizer({**spec, "end": "</s>"}, lambda: ())
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 1}))
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        make_tokenizer(spec, lambda: ())


def test_a_tokenizer_itself_is_taken_as_it_is():
    own = BytePairs([("a", "b")])
    assert make_tokenizer(own, lambda: ()) is own
