"""What sources of image files share: the keywords of how they are read."""

import inspect

import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import keywords
from vfm_jax.data.decode import reading
from vfm_jax.data.sources import SOURCES
from vfm_jax.data.sources.records import RecordSource, reads_images

SHARED = {name: p.default for name, p in inspect.signature(reading).parameters.items()}
IMAGE_SOURCES = ("array_records", "coco", "folder", "pairs", "parquet", "segmentation", "table", "tars", "voc")


@pytest.mark.parametrize("name", IMAGE_SOURCES)
def test_every_source_of_image_files_takes_the_same_keywords(name, tmp_path):
    known = keywords(SOURCES[name])
    assert {field: p.default for field, p in known.items() if field in SHARED} == SHARED | {
        "canvas_size": known["canvas_size"].default
    }
    assert isinstance(known["canvas_size"].default, int)
    assert "reading" not in known
    with pytest.raises(UserError, match="config.data.min_size is 0"):  # before the path is looked at
        SOURCES[name](str(tmp_path / "nothing"), min_size=0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'canvas'"):
        SOURCES[name](str(tmp_path), canvas=3)


def test_the_keywords_become_a_reading():
    class One(RecordSource):
        def __len__(self):
            return 1

        def name(self, index):
            return f"record {index}"

        def _record(self, index):
            return lambda: b"", -1

    @reads_images(canvas_size=32)
    def one(classes, *, reading):
        return One(classes, reading)

    assert list(inspect.signature(one).parameters) == ["classes", *SHARED]
    assert one(("a",)).image_shape == (32, 32, 3)
    source = one(None, canvas_size=(4, 6), channels=1, dtype="float32")
    assert (source.image_shape, source.image_dtype.__name__, source.problems) == ((4, 6, 1), "float32", ())
