"""Single values of parquet files, compared with Arrow's own reading of the whole column."""

import itertools
import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from vfm_jax.data.bad import BadSample
from vfm_jax.data.sources import SOURCES
from vfm_jax.data.sources.pages import ColumnPages, Kept, column_of_bytes

LAYOUTS = [
    dict(zip(("compression", "data_page_version", "use_dictionary"), layout, strict=True))
    for layout in itertools.product(("none", "snappy", "gzip", "brotli", "zstd"), ("1.0", "2.0"), (True, False))
]


def _values(kind):
    chance = np.random.RandomState(0)
    made = [chance.bytes(int(size)) for size in chance.randint(0, 300, 500)]
    few = [made[i % 3] for i in chance.randint(0, 3, 500)]  # stays in its dictionary
    values = {"many": made, "few": few, "same": made[7:8] * 500, "holes": made, "none": [None] * 500}[kind]
    if kind == "holes":
        values = [None if drawn < 0.3 else value for drawn, value in zip(chance.rand(500), values, strict=True)]
    return values


def _pages(file, column="image", max_bytes=2**20):
    meta = pq.read_metadata(file)
    return ColumnPages(str(file), meta, column_of_bytes(meta, column), Kept(max_bytes)), meta


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: "-".join(map(str, one.values())))
@pytest.mark.parametrize("kind", ["many", "few", "same", "holes", "none"])
def test_a_value_is_what_arrow_reads(tmp_path, layout, kind):
    values = _values(kind)
    plain = pa.array(values, pa.binary())
    struct = pa.StructArray.from_arrays([pa.array(["x"] * 500), plain], ["path", "bytes"])
    columns = {"other": list(range(500)), "image": plain, "deep": struct}
    fields = [pa.field("other", pa.int64()), pa.field("image", pa.binary(), nullable=None in values),
              pa.field("deep", struct.type)]  # fmt: skip
    table = pa.table(columns, schema=pa.schema(fields))
    limits = dict(row_group_size=200, data_page_size=2000, write_batch_size=7, dictionary_pagesize_limit=9000)
    pq.write_table(table, tmp_path / "x.parquet", **layout, **limits)
    for column in ("image", "deep"):
        pages, meta = _pages(tmp_path / "x.parquet", column, max_bytes=random.choice((0, 5000, 2**20)))
        assert meta.num_row_groups == 3
        for row in np.random.RandomState(1).permutation(500):
            assert pages.value(row // 200, row % 200) == values[row]


def test_only_the_page_of_a_row_is_unpacked(tmp_path, monkeypatch):
    values = _values("many")
    pq.write_table(pa.table({"image": values}), tmp_path / "x.parquet", data_page_size=2000, write_batch_size=7,
                   use_dictionary=False, compression="zstd")  # fmt: skip
    pages, _ = _pages(tmp_path / "x.parquet")
    unpacked = []
    decompress = pa.decompress
    monkeypatch.setattr(
        pa, "decompress", lambda *a, **given: unpacked.append(given["decompressed_size"]) or decompress(*a, **given)
    )
    assert (pages.value(0, 250), pages.value(0, 250)) == (values[250], values[250])
    assert len(unpacked) == 1 and unpacked[0] < 5000  # of 75 kB, and a second look costs nothing


def test_what_is_kept_stays_within_its_bytes():
    kept, made = Kept(100), []

    def make(size):
        made.append(size)
        return memoryview(bytes(size))

    for size in (60, 30, 60, 50, 30, 60, 101, 101):
        assert len(kept.get(size, lambda size=size: make(size))) == size
    assert made == [60, 30, 50, 30, 60, 101, 101]  # 50 drives out both others, and 101 is never held


def test_a_damaged_file_gives_errors_that_are_said_and_no_crash(tmp_path):
    values = _values("holes")
    for layout in LAYOUTS[::3]:
        file = tmp_path / "x.parquet"
        pq.write_table(pa.table({"image": values}), file, row_group_size=500, data_page_size=2000, **layout)
        content = file.read_bytes()
        chance = random.Random(0)
        for _ in range(60):
            damaged = bytearray(content)
            for _ in range(20):  # the footer is Arrow's to read
                damaged[chance.randrange(4, len(content) - 1200)] = chance.randrange(256)
            file.write_bytes(damaged)
            pages, _ = _pages(file)
            for row in range(0, 500, 50):
                try:
                    found = pages.value(0, row)
                except (ValueError, OSError):
                    continue
                assert found is None or isinstance(found, bytes)


@pytest.mark.parametrize(
    "layout", [dict(column_encoding={"image": "DELTA_LENGTH_BYTE_ARRAY"}), dict(compression="lz4")]
)
def test_what_is_written_in_another_way_is_read_by_row_groups(tmp_path, layout, picture, encoded):
    images = [encoded(picture(6, 9, seed), "PNG") for seed in range(12)]
    layout |= dict(use_dictionary=False, row_group_size=5)
    pq.write_table(pa.table({"image": [*images, None]}), tmp_path / "x.parquet", **layout)
    assert column_of_bytes(pq.read_metadata(tmp_path / "x.parquet"), "image") is None
    source = SOURCES["parquet"](str(tmp_path / "x.parquet"), canvas_size=(8, 12))
    with ThreadPoolExecutor(4) as pool:
        for seed, example in enumerate(pool.map(pickle.loads(pickle.dumps(source)).__getitem__, range(12))):
            np.testing.assert_array_equal(example["image"][:6, :9], picture(6, 9, seed))
    with pytest.raises(BadSample, match="row 12: the row has no image"):
        source[12]


def test_bytes_within_lists_or_of_two_names_are_not_read_by_pages(tmp_path):
    struct = pa.array([{"bytes": b"x"}], pa.struct([("bytes", pa.binary())]))
    table = pa.table({"many": pa.array([[b"x"]], pa.list_(pa.binary())), "a": struct, "a.bytes": [b"y"]})
    pq.write_table(table, tmp_path / "x.parquet")
    meta = pq.read_metadata(tmp_path / "x.parquet")
    assert [column_of_bytes(meta, name) for name in ("many", "many.list.element", "a", "nothing")] == [None] * 4
