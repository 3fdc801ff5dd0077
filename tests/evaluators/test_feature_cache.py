"""The cache of features: what was encoded before is not encoded again, and is what it would have been."""

import os
import pathlib
import resource
import signal
import subprocess
import sys
import tarfile
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vfm_jax.cli import override
from vfm_jax.core.errors import UserError
from vfm_jax.data import cache as pictures
from vfm_jax.data.ledger import Ledger
from vfm_jax.evaluators.feature_cache import identify
from vfm_jax.evaluators.features import extract
from vfm_jax.experiment import Variables, from_recipe
from vfm_jax.train.evaluation import Judge
from vfm_jax.train.stages import read_stages

REPOSITORY = pathlib.Path(__file__).parents[2]
BATCH = 8  # one image for each of the devices
NORMALIZE = dict(name="normalize", mean=0.5, std=0.25)


def _write(file, seed):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 18, 3), np.uint8)).save(file)


@pytest.fixture
def images(tmp_path):
    """20 files in two classes: two whole batches and a part of one."""
    for i in range(20):
        _write(tmp_path / "images" / f"c{i % 2}" / f"{i:02}.png", seed=i)
    return tmp_path / "images"


def recipe(images, cache=None, **fields):
    return (
        dict(
            data=dict(name="folder", path=str(images), canvas_size=16, batch_size=8, max_bad_ratio=0.2),
            views=dict(image=dict(ops=(NORMALIZE,))),
            eval_views=dict(image=dict(ops=(NORMALIZE,))),
            networks=dict(
                encoder=dict(name="vit", variant="mu/8", width=16, depth=1, heads=2, mlp_dim=16),
                head=dict(name="linear_head", num_classes=2),
            ),
            objective=dict(name="supervised"),
            optimizer=dict(name="adamw"),
            schedule=dict(name="constant", base=1e-3),
            total_steps=1,
            evals=dict(knn=dict(num_neighbors=3)),
            eval_batch_size=BATCH,
            feature_cache={} if cache is None else dict(path=str(cache)),
        )
        | fields
    )


class Evaluation:
    """A judge of random weights that counts the batches which the encoder sees.

    Attributes:
        encoded: numbers of valid images of each batch.
    """

    def __init__(self, fields):
        self.ledger = Ledger()
        experiment = from_recipe(fields)
        self.judge = Judge(experiment, self.ledger)
        draw = np.random.default_rng(experiment.seed).standard_normal
        params = jax.tree.map(lambda leaf: jnp.asarray(draw(leaf.shape, np.float32)), experiment.abstract_params)
        self.variables = Variables(params, {})
        self.encoded = []
        features = self.judge._predict["features"]

        def counted(variables, batch):
            if not isinstance(batch["valid"], jax.core.Tracer):
                self.encoded.append(int(batch["valid"].sum()))
            return features(variables, batch)

        self.judge._predict["features"] = counted

    def extract(self, split="test", pool="pooled"):
        self.encoded.clear()
        return extract(
            self.judge._bind(self.variables),
            self.judge._passes(),
            split,
            pool,
            cache=self.judge._kept(self.variables),
        )


def _same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


def _file(cache):
    (file,) = cache.glob("*.features")
    return file


def test_the_second_evaluation_calls_no_encoder_and_finds_the_same_bits(images, tmp_path):
    plain = Evaluation(recipe(images))
    expected = plain.extract()
    assert plain.encoded == [8, 8, 4]
    first = Evaluation(recipe(images, tmp_path / "cache"))
    _same(first.extract(), expected)
    assert first.encoded == [8, 8, 4]
    again = Evaluation(recipe(images, tmp_path / "cache"))
    _same(again.extract(), expected)
    assert again.encoded == []


def test_another_evaluator_of_the_same_weights_has_its_features(images, tmp_path):
    knn = Evaluation(recipe(images, tmp_path / "cache"))
    knn.judge.evaluate(knn.variables, ["knn"])
    assert knn.encoded == [8, 8, 4]  # the two splits are the same images, in one file
    probe = Evaluation(recipe(images, tmp_path / "cache", evals=dict(linear_probe=dict())))
    figures = probe.judge.evaluate(probe.variables, ["linear_probe"])
    assert probe.encoded == []
    plain = Evaluation(recipe(images, evals=dict(linear_probe=dict())))
    assert plain.judge.evaluate(plain.variables, ["linear_probe"]) == figures


def test_a_head_that_learns_changes_nothing_and_an_encoder_that_learns_everything(images, tmp_path):
    run = Evaluation(recipe(images, tmp_path / "cache"))
    expected = run.extract()
    params = run.variables.params
    run.variables = run.variables._replace(
        params={**params, "head": jax.tree.map(lambda leaf: leaf + 1, params["head"])}
    )
    _same(run.extract(), expected)
    assert run.encoded == []
    last = max(jax.tree.leaves(params["encoder"]), key=lambda leaf: leaf.size)
    moved = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].add(1e-3) if leaf is last else leaf, params)
    run.variables = run.variables._replace(params=moved)
    found = run.extract()
    assert run.encoded == [8, 8, 4]
    assert not np.array_equal(found.features, expected.features)


@pytest.mark.parametrize(
    "change",
    [
        dict(eval_views=dict(image=dict(ops=(dict(NORMALIZE, std=0.5),)))),
        dict(dtype="bfloat16"),
        dict(eval_batch_size=16),
        dict(seed=1),  # other weights
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_views_dtypes_batches_and_weights_have_features_of_their_own(images, tmp_path, change):
    Evaluation(recipe(images, tmp_path / "cache")).extract()
    other = Evaluation(recipe(images, tmp_path / "cache", **change))
    found = other.extract()
    assert sum(other.encoded) == 20
    _same(found, Evaluation(recipe(images, **change)).extract())


def test_poolings_are_kept_apart_and_pixels_not_at_all(images, tmp_path):
    run = Evaluation(recipe(images, tmp_path / "cache"))
    for pool in ("pooled", "mean_patch"):
        run.extract(pool=pool)
        assert sum(run.encoded) == 20
    run.extract(pool="pixels")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_file_that_changes_costs_its_batch_and_no_other(images, tmp_path):
    Evaluation(recipe(images, tmp_path / "cache")).extract()
    _write(images / "c1" / "01.png", seed=99)  # record 10, in the second batch
    run = Evaluation(recipe(images, tmp_path / "cache"))
    found = run.extract()
    assert run.encoded == [8]
    _same(found, Evaluation(recipe(images)).extract())
    run.extract()
    assert run.encoded == []


def test_another_decoder_or_canvas_is_another_image(images, tmp_path, monkeypatch):
    run = Evaluation(recipe(images, tmp_path / "cache"))
    run.extract()
    monkeypatch.setattr(pictures, "_versions", lambda: ("1.0",))
    run.extract()
    assert sum(run.encoded) == 20


def test_labels_are_those_of_today(images, tmp_path):
    Evaluation(recipe(images, tmp_path / "cache")).extract()
    (images / "c1").rename(images / "b1")
    run = Evaluation(recipe(images, tmp_path / "cache"))
    assert run.extract().labels.tolist() == [0] * 10 + [1] * 10
    _same(run.extract(), Evaluation(recipe(images)).extract())


@pytest.mark.parametrize("place", [0, 8, 24, 40])
def test_a_damaged_record_is_made_again(images, tmp_path, place):
    run = Evaluation(recipe(images, tmp_path / "cache"))
    expected = run.extract()
    file = _file(tmp_path / "cache")
    content = bytearray(file.read_bytes())
    content[17 * len(content) // 20 + place] ^= 1
    file.write_bytes(content)
    _same(run.extract(), expected)
    assert run.encoded == [4]
    _same(run.extract(), expected)
    assert run.encoded == []


def test_bad_records_are_named_each_time_and_cost_one_batch_in_all(images, tmp_path):
    for name in ("c0/02.png", "c1/03.png"):  # in the first and in the second batch
        (images / name).write_bytes((images / name).read_bytes()[:60])
    plain = Evaluation(recipe(images))
    expected = plain.extract()
    for encoded in ([7, 7, 4], [0], [0]):
        run = Evaluation(recipe(images, tmp_path / "cache"))
        _same(run.extract(), expected)
        assert run.encoded == encoded
        assert [row["name"] for row in run.ledger.rows] == [row["name"] for row in plain.ledger.rows]


def test_images_without_files_are_told_by_their_pixels(images, tmp_path):
    arrays = tmp_path / "arrays.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    data = dict(name="arrays", path=str(arrays), batch_size=8)
    labels = np.arange(20) % 2

    def evaluated(pixels):
        np.savez(arrays, images=pixels, labels=labels)
        run = Evaluation(recipe(images, tmp_path / "cache", data=data))
        found = run.extract()
        return run.encoded[:], found

    assert evaluated(pixels)[0] == [8, 8, 4]
    assert evaluated(pixels)[0] == []  # written anew, with the same pixels
    pixels[3] ^= 1
    encoded, found = evaluated(pixels)
    assert encoded == [8]
    _same(found, Evaluation(recipe(images, data=data)).extract())


def test_members_of_a_tar_go_by_the_tar(images, tmp_path):
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for file in sorted(images.rglob("*.png")):
            shard.add(file, f"{file.parent.name}/{file.name}")
    data = dict(name="tars", path=str(tmp_path / "shard.tar"), canvas_size=16, batch_size=8)
    for encoded in ([8, 8, 4], []):
        run = Evaluation(recipe(images, tmp_path / "cache", data=data))
        run.extract()
        assert run.encoded == encoded


CHILD = """
    import os, pathlib, signal, sys

    sys.path[:0] = [sys.argv[1], str(pathlib.Path(sys.argv[1]) / "tests")]
    import jax
    jax.config.update("jax_default_matmul_precision", "highest")  # as the tests; the rest is in the environment
    from evaluators.test_feature_cache import Evaluation, recipe

    run = Evaluation(recipe(sys.argv[2], sys.argv[3]))
    write, count = os.pwrite, 0

    def half(handle, record, offset):
        global count
        count += 1
        if count > 11:  # killed within a record of the second batch
            write(handle, record[: len(record) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return write(handle, record, offset)

    os.pwrite = half
    run.extract()
"""


@pytest.mark.slow
def test_a_process_killed_while_it_writes_leaves_what_was_written(images, tmp_path):
    script = tmp_path / "child.py"
    script.write_text(textwrap.dedent(CHILD), encoding="utf-8")
    words = [sys.executable, str(script), str(REPOSITORY), str(images), str(tmp_path / "cache")]
    killed = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = Evaluation(recipe(images, tmp_path / "cache"))
    _same(run.extract(), Evaluation(recipe(images)).extract())
    assert run.encoded == [8, 4]  # the first batch was kept by another process


def test_a_full_disk_ends_the_keeping_and_is_said_once(images, tmp_path, capfd):
    """The limit of the process on the size of a file stands for a disk that is full after five records."""
    run = Evaluation(recipe(images, tmp_path / "cache"))
    expected = run.extract()
    file = _file(tmp_path / "cache")
    size = file.stat().st_size
    file.write_bytes(b"\0" * size)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5 * size // 20 + 10, before[1]))
    try:
        _same(run.extract(), expected)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert capfd.readouterr().err.count("The run goes on without the cache") == 1


def test_a_bound_that_could_never_be_kept_is_refused_before_any_work(images, tmp_path):
    fields = recipe(images, feature_cache=dict(path=str(tmp_path / "cache"), max_gigabytes=1e-6))
    with pytest.raises(UserError, match=r"40 images of width 16 take 3\.52e-06 GB, above max_gigabytes=1e-06"):
        from_recipe(fields)
    assert not (tmp_path / "cache").exists()


def test_what_was_not_used_for_longest_makes_room(images, tmp_path):
    bound = 2.5 * 20 * (24 + 4 * 16) / 1e9
    fields = recipe(images, feature_cache=dict(path=str(tmp_path / "cache"), max_gigabytes=bound))
    files = []
    for seed in (0, 1, 0, 2):
        run = Evaluation(fields | dict(seed=seed))
        run.extract()
        files.append(set((tmp_path / "cache").iterdir()))
    assert len(files[1]) == len(files[3]) == 2
    assert run.encoded == [8, 8, 4]
    assert files[0] <= files[3]  # used again in between
    Evaluation(fields | dict(seed=0)).extract()


def test_what_cannot_be_is_refused(images, tmp_path):
    with pytest.raises(UserError, match=r"config\.feature_cache\.max_gigabytes is 0"):
        from_recipe(recipe(images, feature_cache=dict(path=str(tmp_path), max_gigabytes=0)))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"config\.feature_cache\.path .* which is a file"):
        from_recipe(recipe(images, feature_cache=dict(path=str(tmp_path / "file"))))
    with pytest.raises(UserError, match=r"config\.feature_cache\.paht"):
        from_recipe(recipe(images, feature_cache=dict(path=str(tmp_path), paht="x")))


def test_a_path_and_a_bound_may_be_given_on_the_command_line(images, tmp_path):
    given = [("feature_cache.path", str(tmp_path / "cache")), ("feature_cache.max_gigabytes", "5")]
    fields = override(recipe(images), given, "the recipe")
    assert fields["feature_cache"] == dict(path=str(tmp_path / "cache"), max_gigabytes=5.0)
    assert _built(fields).feature_cache is not None
    assert _built(override(recipe(images), [], "the recipe")).feature_cache is None


def _built(fields):
    (stage,) = read_stages(fields)
    return from_recipe(stage.recipe)


def test_several_processes_are_refused(images, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="one process, and this one has 2"):
        from_recipe(recipe(images, tmp_path / "cache"))


def _key(program, variables, num_images=2):
    identity, width = identify(program, variables, {"image": jnp.zeros((num_images, 3))})
    assert width == 4
    return identity.digest()


def test_the_program_and_what_it_reads_make_the_key():
    variables = {"read": jnp.ones((3, 4)), "unread": jnp.ones(5)}

    def project(scale):
        table = np.full(4, scale, np.float32)  # a constant of the program, as a table of positions is
        inner = jax.jit(
            lambda variables, batch: (batch["image"] @ variables["read"] + table[None], variables["unread"])
        )
        return lambda variables, batch: inner(variables, batch)[0]

    key = _key(project(1.0), variables)
    assert _key(project(1.0), {**variables, "unread": jnp.zeros(7)}) == key
    different = [
        _key(project(2.0), variables),
        _key(project(1.0), {**variables, "read": jnp.ones((3, 4)).at[2, 3].set(2.0)}),
        _key(lambda variables, batch: jnp.tanh(project(1.0)(variables, batch)), variables),
        _key(project(1.0), variables, num_images=3),
    ]
    assert len({key, *different}) == 5


def test_settings_of_the_compiler_are_part_of_the_key(monkeypatch):
    variables = {"read": jnp.ones((3, 4))}
    key = _key(lambda variables, batch: batch["image"] @ variables["read"], variables)
    monkeypatch.setitem(os.environ, "XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert _key(lambda variables, batch: batch["image"] @ variables["read"], variables) != key
