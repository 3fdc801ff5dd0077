"""From a recipe to the things it names: the one place where a config becomes objects.

Every field of a recipe is a keyword of `build_experiment`, and every dict in it names a function of ours and that
function's keywords. Unknown fields are refused before anything is built.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vfm_jax.augment import VIEW_OPS
from vfm_jax.augment.mix import mixup_cutmix
from vfm_jax.augment.views import build_views, listed
from vfm_jax.core.durations import UNITS, Clock, read_duration, read_durations
from vfm_jax.core.errors import UserError
from vfm_jax.core.keys import example_keys, stream
from vfm_jax.core.memory import device_memory
from vfm_jax.core.sharding import (
    RULES,
    Rules,
    batch_sharding,
    batch_share,
    check_batch_size,
    global_batch,
    has_host_memory,
    make_mesh,
    replicated,
    shardings,
)
from vfm_jax.core.tables import build, check_fields, keywords, lookup
from vfm_jax.core.types import Batch
from vfm_jax.data.cache import cached
from vfm_jax.data.crop import Crop, CroppedSource
from vfm_jax.data.device import Prefetch, prefetch
from vfm_jax.data.ledger import Ledger, bad_samples
from vfm_jax.data.pipeline import HOST_FIELDS, HostBatch, blank_rows, check_loader, eval_batches, train_batches
from vfm_jax.data.resident import STORED, on_every_device, read_whole, stored_bytes, stored_fields, take_rows
from vfm_jax.data.sources import SOURCES, Source
from vfm_jax.data.sources.blank import BlankSource, size_of
from vfm_jax.data.tokenizer import keep_tokenizer
from vfm_jax.evaluators import EVALUATORS, Evaluator, evaluate
from vfm_jax.evaluators.feature_cache import FeatureCache, KeptFeatures
from vfm_jax.evaluators.features import POOLS
from vfm_jax.evaluators.interface import Cache, check_evaluator
from vfm_jax.models import MODELS
from vfm_jax.nn.resample import resample_positions
from vfm_jax.objectives import OBJECTIVES
from vfm_jax.objectives.combine import Member, combine
from vfm_jax.objectives.interface import Objective, Variables
from vfm_jax.objectives.observe import observe_embedding, observe_shares
from vfm_jax.optim import (
    OPTIMIZERS,
    SCHEDULES,
    Group,
    Schedule,
    ema_momentum,
    make_optimizer,
    update_ema,
)
from vfm_jax.optim.posthoc import Tracker, combination, track_profiles
from vfm_jax.weights import frozen
from vfm_jax.weights.initial import PRETRAINED, InitialWeights

__all__ = [
    "MODELS",
    "OPTIMIZERS",
    "Evaluation",
    "Experiment",
    "Ledger",
    "Objective",
    "Source",
    "Variables",
    "bad_samples",
    "blank_source",
    "build_experiment",
    "combination",
    "complete",
    "from_recipe",
    "listed",
    "observe_embedding",
    "observe_shares",
    "read_source",
    "resample_positions",
]

MEMBER_FIELDS = {"label", "weight", "fields", "networks", *(f"start_{unit}" for unit in UNITS)}  # of one of several
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
OFFLOADED = ("opt_state", "ema", "profiles")  # parts of the state that a step only reads and writes once
BASELINES = ("random_init", "raw_pixels")
# Of `config.data`, for the pipeline: data.pipeline.train_batches.
LOADER = {name: keywords(train_batches)[name].default for name in ("workers", "threads", "repeats", "max_bad_ratio")}
# Of `config.data` too: what is made of a source's images, and where they are held.
HOLDING = {"crop": None, "cache": None, "resident": None}
# Of `config.feature_cache`; without a path there is none.
FEATURE_CACHE = {"path": None, "max_gigabytes": keywords(FeatureCache)["max_gigabytes"].default}
RESIDENT_BYTES, RESIDENT_RATIO = 2**29, 0.1  # of a device's memory: what a data set may take of it unasked
PROBED = "eval train"  # a name for the evaluators' own training data
# Of a whole run: `train` reads them.
RUN_FIELDS = {"stages": (), "start_from": "", "branch_from": "", "carry": (".*",)}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluator and when it is due.

    Attributes:
        evaluator: a value of `evaluators`.
        every_steps: how often while training; 0 for only at the end.
    """

    evaluator: Evaluator
    every_steps: int


class HostCrop(NamedTuple):
    """What a recipe would be if the host made its random crop, in place of the step.

    Attributes:
        crop: for `config.data.crop`.
        num_operations: the first ones of the view, which it takes the place of.
        source: gives the crops.
        views: the others.
    """

    crop: Crop
    num_operations: int
    source: Source
    views: Callable[[jax.Array, Batch], Batch]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One stage of a recipe, built; `train` runs it.

    Attributes:
        source: what is trained on.
        resident: whether its images lie on the devices from the start; see `data.resident`.
        eval_sources: "train" and "test", for evaluators; empty where the recipe has none.
        loader: what the data pipeline takes of `config.data`.
        views: device function from a host batch (uint8 canvas) to what the objective takes.
        host_crop: what the host could do of the views' work; None where it cannot, or does.
        mixes: whether they blend the images of a batch with one another.
        eval_views: the same for evaluation, without randomness.
        feature_cache: where features are kept for other evaluations of the same weights; None for nowhere.
        initialize: fresh (params, extra) -> the same with public weights in place, and an account; None without.
        fill_frozen: fresh extra -> the same with its frozen networks as their files have them, and an account; None
            where no network has a file.
        sample: a host batch of two blank examples, for shapes.
        denormalizers: "train" and "test" -> field of the views -> from what the network sees to [0, 1].
        abstract_params: shapes of the parameters.
    """

    title: str
    seed: int
    stage: int
    source: Source
    resident: bool
    eval_sources: Mapping[str, Source]
    loader: Mapping[str, Any]
    views: Callable[[jax.Array, Batch], Batch]
    host_crop: HostCrop | None
    mixes: bool
    eval_views: Callable[[jax.Array, Batch], Batch] | None
    feature_cache: FeatureCache | None
    initialize: Callable[[Any, Any], tuple[Any, Any, str]] | None
    fill_frozen: Callable[[Any], tuple[Any, str]] | None
    sample: Batch
    abstract_params: Any
    objective: Objective
    schedule: Callable[[Any], jax.Array]
    optimizer: optax.GradientTransformation
    update_ema: Callable[[Any, Any, jax.Array], Any] | None
    tracker: Tracker | None
    mesh: jax.sharding.Mesh
    rules: Rules
    offload: Sequence[str]
    batch_size: int
    eval_batch_size: int
    num_micro_batches: int
    total_steps: int
    evaluations: Mapping[str, Evaluation]
    baselines: Mapping[str, Mapping[str, Evaluator]]
    denormalize: Callable[[np.ndarray], np.ndarray]
    denormalizers: Mapping[str, Mapping[str, Callable[[np.ndarray], np.ndarray]]]
    save_every_steps: int
    keep_checkpoints: int
    log_every_steps: int
    writers: Sequence[str]

    def train_batches(self, start_step: int, ledger: Ledger | None = None) -> Prefetch:
        """Global batches from step `start_step` on, without end, a few ahead of their use.

        Args:
            start_step: number of the first batch.
            ledger: where records that cannot be used are written down.
        """
        source, loader, stored = self.source, self.loader, {}
        left_out = (*HOST_FIELDS, *_implied(source))
        if self.resident:
            source, whole = read_whole(self.source, threads=loader["threads"])
            loader = {**loader, "workers": 0}  # there is nothing left to decode
            stored = {STORED: on_every_device(whole, replicated(self.mesh))}
            left_out = (*left_out, "image")  # it has no pixels
        part, num_parts = batch_share(self.mesh)
        host = train_batches(
            source,
            batch_size=self.batch_size,
            seed=self.seed,
            stage=self.stage,
            start_step=start_step,
            ledger=ledger,
            process_index=part,
            process_count=num_parts,
            **loader,
        )
        return prefetch(host, lambda batch: {**self._on_devices(batch, left_out), **stored})

    def abstract_batch(self) -> Batch:
        """Shapes, dtypes and layout of what `train_batches` gives, without reading anything."""
        batch = _abstract_batch(self.source, self.batch_size, self.mesh)
        if not self.resident:
            return batch
        large = stored_fields(blank_rows(self.source, 1))
        whole = {
            name: jax.ShapeDtypeStruct(
                (len(self.source), *rows.shape[1:]), rows.dtype, sharding=replicated(self.mesh)
            )
            for name, rows in large.items()
        }
        return {name: leaf for name, leaf in batch.items() if name not in large} | {STORED: whole}

    def eval_batches(
        self,
        split: str,
        limit: int | None = None,
        ledger: Ledger | None = None,
        records: Sequence[int] | None = None,
    ) -> Iterator[Batch]:
        """Global batches of one pass over "train" or "test" (or of `limit` evenly spaced examples, or `records`)."""
        part, num_parts = batch_share(self.mesh)
        host = eval_batches(
            self.eval_sources[split],
            batch_size=self.eval_batch_size,
            process_index=part,
            process_count=num_parts,
            limit=limit,
            records=records,
            max_bad_ratio=self.loader["max_bad_ratio"],
            ledger=ledger,
            part=f"eval {split}",
            stage=self.stage,
        )
        return map(self._on_devices, host)

    def _on_devices(self, batch: HostBatch, left_out: Sequence[str] = HOST_FIELDS) -> Batch:
        return global_batch({name: rows for name, rows in batch.items() if name not in left_out}, self.mesh)

    def keep_vocabulary(self, workdir: pathlib.Path) -> None:
        """Writes what turns texts into ids beside the run, or finds that the run was begun with the same.

        Raises:
            UserError: it was begun with another.
        """
        tokenizer = getattr(self.source, "tokenizer", None)
        if tokenizer is not None and jax.process_index() == 0:
            keep_tokenizer(tokenizer, workdir)

    def run_evaluators(
        self,
        evaluators: Mapping[str, Evaluator],
        predict: Mapping[str, Callable[[Batch], Any]],
        batches: Mapping[str, Callable[[], Iterator[Batch]]],
        cache: Cache | None = None,
    ) -> dict[str, float]:
        """Figures of the evaluators, as `evaluator/figure`."""
        return evaluate(evaluators, predict, batches, cache)

    def kept_features(
        self,
        variables: Variables,
        predict: Mapping[str, Callable[[Variables, Batch], Any]],
        views: Callable[[Batch], Batch],
        ledger: Ledger,
    ) -> Cache:
        """For `run_evaluators`: the features of these weights that `feature_cache` has, and a place for the others.

        Args:
            variables: the weights.
            predict: as the objective's, jitted.
            views: host batch on the devices -> what the networks see.
            ledger: where records that cannot be used are written down.
        """
        if (folder := self.feature_cache) is None:
            return Cache()

        def kept(pool: str, split: str) -> KeptFeatures:
            def program(variables: Variables, batch: Batch) -> jax.Array:
                bound = {
                    name: lambda batch, function=function: function(variables, batch)
                    for name, function in predict.items()
                }
                return POOLS[pool](bound, views(batch))

            return folder.open(
                program,
                variables,
                _abstract_batch(self.eval_sources[split], self.eval_batch_size, self.mesh),
                self.eval_sources[split],
                lambda records: map(views, self.eval_batches(split, ledger=ledger, records=records)),
            )

        return Cache(kept)


def build_experiment(
    *,
    data: Mapping[str, Any],
    views: Mapping[str, Any],
    networks: Mapping[str, Any],
    objective: Mapping[str, Any],
    optimizer: Mapping[str, Any],
    schedule: Mapping[str, Any],
    mix: Mapping[str, Any] = {},
    init: Mapping[str, Any] = {},
    title: str = "",
    seed: int = 0,
    total_steps: float | None = None,
    total_epochs: float | None = None,
    total_examples: float | None = None,
    num_micro_batches: int = 1,
    ema: Mapping[str, Any] = {},
    posthoc_ema: Mapping[str, Any] = {},
    eval_data: Mapping[str, Any] = {},
    eval_views: Mapping[str, Any] = {},
    evals: Mapping[str, Any] = {},
    eval_batch_size: int = 256,
    feature_cache: Mapping[str, Any] = {},
    baselines: Sequence[str] = (),
    dtype: str = "float32",
    mesh: Mapping[str, int] = {},
    sharding: Sequence[tuple[Any, ...]] = RULES,
    offload: Sequence[str] = (),
    checkpoints: Mapping[str, Any] = {},
    log_every_steps: int = 10,
    writers: Sequence[str] = (),
    stage: int = 0,
    devices: Sequence[jax.Device] | None = None,
    source: Source | None = None,
) -> Experiment:
    """Builds one stage; the keywords are the fields of a recipe, but for the last three, which the program sets.

    Args:
        data: a source by name with its keywords, and `batch_size` (global), `workers`, `threads`, `repeats` and
            `max_bad_ratio` (see `data.pipeline.train_batches`); `crop`, what the host cuts out of each photo (see
            `data.crop.Crop`); `cache` of decoded pictures (see `data.cache.cached`); `resident`, whether all images
            are put on the devices at the start, by default where they lie in memory anyway and are small.
        views: field -> {"ops": ordered operations, "num_views": views per example}.
        networks: role -> network by name; roles are the objective's arguments ("encoder", "decoder", ...).
        objective: a method by name with its keywords.
        optimizer: by name with its keywords.
        schedule: learning rate by name; durations in steps, epochs, examples or percent (`warmup_epochs`).
        mix: mixup and CutMix of the finished views (keywords of `augment.mix.mixup_cutmix`); {} mixes nothing.
        init: public weights to start from: {"weights": "dinov2_vits14", "freeze_epochs": 1}, see
            `weights.initial.InitialWeights`; the encoder does not move for `freeze_steps` (or another unit). A
            network {"name": "pretrained"} is the one that the file holds.
        title: one line for the report.
        seed: of everything random.
        total_steps: length of the run, here or in the next two units.
        total_epochs: the same in epochs.
        total_examples: the same in examples.
        num_micro_batches: split each batch into this many, with the gradient of the whole (gradient accumulation).
        ema: keep an average of the parameters for evaluation: {"momentum": 0.9999}; {} keeps none.
        posthoc_ema: track averages in whose place any other can be put after training: {"sigma_rel": (0.05, 0.1)}.
            They lie in every checkpoint (`checkpoints.keep_last` says of how many); `export.average` combines them.
        eval_data: what "train" and "test" of the evaluators differ in from `data`: {"test": {"split": "test"}}. Each
            field replaces the one of `data` whole; with another `name`, the fields that the two sources share stay.
        eval_views: as `views`, for evaluation; without randomness.
        evals: name -> evaluator by name with its keywords, and `every_epochs` (or another unit) while training.
        eval_batch_size: examples per evaluation batch over all devices.
        feature_cache: keeps the features that evaluators ask for, by the weights that made them: {"path": ...}, see
            `evaluators.feature_cache.FeatureCache`; without a path it keeps none.
        baselines: what the result is compared with: "random_init", "raw_pixels".
        dtype: of matrix products, "float32" or "bfloat16"; parameters, norms, softmax and losses are float32.
        mesh: {"data": -1, "fsdp": 1, "tensor": 1}; -1 is what is left of the devices.
        sharding: ordered rules (regex over leaf names, layout, ...); see `core.sharding`.
        offload: what lies in the hosts' memory between steps: "opt_state", "ema", "profiles" (of `posthoc_ema`).
        checkpoints: {"every_epochs": 1, "keep_last": 2}, any unit.
        log_every_steps: how often metrics are written.
        writers: besides metrics.jsonl: "tensorboard", "wandb".
        stage: position among the recipe's stages.
        devices: of the mesh; those there are by default. A plan has the ones it is made for.
        source: stands for all of the recipe's data, which then need not be there; see `blank_source`.

    Raises:
        UserError: a field, name or value that cannot be; nothing expensive has run by then.
    """
    fields = dict(data)
    loader = {name: fields.pop(name, default) for name, default in LOADER.items()}
    holding = {name: fields.pop(name, default) for name, default in HOLDING.items()}
    if "batch_size" not in fields:
        raise UserError("config.data lacks batch_size: the number of examples per step, over all devices.")
    batch_size = fields.pop("batch_size")
    _check_count(batch_size, "config.data.batch_size")
    check_loader(**loader)
    _check_count(num_micro_batches, "config.num_micro_batches")
    device_mesh = _build_mesh(mesh, devices)
    check_batch_size(batch_size, device_mesh, num_micro_batches)
    check_batch_size(eval_batch_size, device_mesh)

    files = networks = frozen.described(networks)
    networks = frozen.without_files(networks)
    start = _initial(init, networks)
    networks, views, eval_views = (
        (start.networks(networks), start.views(views), start.views(eval_views))
        if start
        else (networks, views, eval_views)
    )
    built_networks = {role: _build_network(role, spec, dtype) for role, spec in networks.items()}
    _check_objective(objective, built_networks)
    for name, spec in evals.items():
        lookup(EVALUATORS, spec.get("name", name), f"config.evals.{name}.name")
    for baseline in baselines:
        lookup(dict.fromkeys(BASELINES), baseline, "config.baselines")

    stands_in = source is not None
    canvases = source if source is not None else _build_source(fields, "config.data", holding)
    source = _cropped(canvases, holding, seed, stage)
    resident = _is_resident(source, holding, device_mesh)
    eval_sources = {}
    if evals:
        for split in ("train", "test"):
            where = f"config.eval_data.{split}"
            # Evaluators see whole photos, on canvases, whatever training cuts out of them.
            eval_sources[split] = canvases
            if (overlay := eval_data.get(split)) and not stands_in:
                own = _overlaid(fields, overlay, where)
                takes_texts = "tokenizer" in keywords(lookup(SOURCES, own["name"], f"{where}.name"))
                if takes_texts and "tokenizer" not in overlay and hasattr(source, "tokenizer"):
                    own["tokenizer"] = source.tokenizer  # a learned vocabulary is that of the training data
                eval_sources[split] = _build_source(own, where, holding)
                _check_channels(eval_sources[split], source, where)

    clock = Clock(batch_size, len(source))
    lengths = dict(total_steps=total_steps, total_epochs=total_epochs, total_examples=total_examples)
    steps = read_duration(lengths, "total", clock, "config")
    if not steps:
        raise UserError("The recipe has no length: set config.total_epochs, total_examples or total_steps, above 0.")
    clock = dataclasses.replace(clock, total_steps=steps)

    rate = _build_schedule(schedule, clock, "config.schedule")
    built_objective = _build_objective(objective, built_networks, clock)
    average = _build_ema(_with_schedules(ema, clock, "config.ema"))
    if evals and not eval_views:
        raise UserError("config.evals needs config.eval_views: what evaluators see, without randomness.")
    train_views, test_views = _build_views(views, mix), build_views(eval_views) if eval_views else None
    sample = _sample(source)
    abstract = _abstract_variables(built_objective, train_views, sample)
    rules = _read_rules(sharding)
    _check_offload(offload, device_mesh)
    _check_tensor_axis(abstract.params, device_mesh, rules)
    _check_labels(source, networks, "config.networks")
    _check_texts(source, networks, "config.networks")
    still = {r"^encoder/": read_duration(init, "freeze", clock, "config.init", 0)} if stage == 0 else {}
    update = make_optimizer(abstract.params, _optimizer_fields(optimizer, clock), rate, freeze_steps=still)

    evaluations = {}
    for name, spec in evals.items():
        where = f"config.evals.{name}"
        every = read_duration(spec, "every", clock, where, 0)
        evaluations[name] = Evaluation(build(EVALUATORS, _evaluator_fields(name, spec), where), every)
        check_evaluator(evaluations[name].evaluator, name, built_objective.predict, eval_sources)

    kept = _build_feature_cache(feature_cache)
    if (
        kept is not None
        and test_views is not None
        and any("features" in one.evaluator.needs for one in evaluations.values())
    ):
        _check_features_fit(kept, built_objective, abstract, test_views, eval_sources)

    check_fields(_checkpoint_fields, checkpoints, "config.checkpoints")
    return Experiment(
        title=title or f"{objective['name']} on {data['name']}",
        seed=seed,
        stage=stage,
        source=source,
        resident=resident,
        eval_sources=eval_sources,
        loader=loader,
        views=train_views,
        host_crop=_host_crop(views, mix, source, holding, resident, seed=seed, stage=stage),
        mixes=bool(mix),
        eval_views=test_views,
        feature_cache=kept,
        initialize=_initializer(start, networks) if start else None,
        fill_frozen=(lambda extra: frozen.fill_frozen(extra, files)) if frozen.has_files(files) else None,
        sample=sample,
        abstract_params=abstract.params,
        objective=built_objective,
        schedule=rate,
        optimizer=update,
        update_ema=average,
        tracker=_build_tracker(posthoc_ema),
        mesh=device_mesh,
        rules=rules,
        offload=tuple(offload),
        batch_size=batch_size,
        eval_batch_size=eval_batch_size,
        num_micro_batches=num_micro_batches,
        total_steps=steps,
        evaluations=evaluations,
        baselines={name: _baseline_evaluators(name, evals) for name in baselines},
        denormalize=_denormalizer(eval_views),
        denormalizers={
            split: {field: _denormalizer({field: spec}) for field, spec in of_split.items()}
            for split, of_split in (("train", views), ("test", eval_views))
        },
        save_every_steps=read_duration(checkpoints, "every", clock, "config.checkpoints", max(1, steps // 10)),
        keep_checkpoints=checkpoints.get("keep_last", 2),
        log_every_steps=log_every_steps,
        writers=tuple(writers),
    )


PROGRAMS_OWN = ("stage", "devices", "source")  # keywords of `build_experiment` that are no fields of a recipe


def from_recipe(
    recipe: Mapping[str, Any],
    stage: int = 0,
    *,
    devices: Sequence[jax.Device] | None = None,
    source: Source | None = None,
) -> Experiment:
    """The experiment that one stage's fields describe.

    Raises:
        UserError: as `build_experiment`, and for a field that is none of its keywords.
    """
    check_fields(build_experiment, recipe, "config", given=PROGRAMS_OWN)
    return build_experiment(**recipe, stage=stage, devices=devices, source=source)


def read_source(recipe: Mapping[str, Any]) -> Source:
    """What one stage trains on, before it is cropped.

    Raises:
        UserError: it is not there.
    """
    data = recipe["data"]
    return _build_source(_source_fields(data), "config.data", {name: data.get(name) for name in HOLDING})


def blank_source(recipe: Mapping[str, Any], num_examples: int | None = None) -> Source:
    """As large as the recipe's data, and without them.

    Args:
        recipe: one stage's fields.
        num_examples: how many there are; where the data set is well known, None.

    Raises:
        UserError: the length of the run counts in epochs, and how long one is is not known.
    """
    data = recipe["data"]
    known = size_of(data)
    if num_examples is None and known is None and (recipe.get("total_epochs") or not _counts_no_epochs(recipe)):
        raise UserError(
            f"config.data ({data.get('name')}) cannot be read here, and how many images it has is not known: an "
            "epoch has no length. Say it with --examples=N."
        )
    heads = [one.get("num_classes", 0) for one in (*recipe["networks"].values(), recipe.get("mix", {}))]
    return BlankSource(data, num_examples or known or 1, max([0, *heads]))


def _counts_no_epochs(fields: Mapping[str, Any]) -> bool:
    return not any(
        (name.endswith("_epochs") and value) or (isinstance(value, Mapping) and not _counts_no_epochs(value))
        for name, value in fields.items()
        if name not in ("checkpoints", "evals")  # how often does not matter
    )


def _source_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """Of `config.data` what names and describes the source."""
    others = {*LOADER, *HOLDING, "batch_size"}
    return {name: value for name, value in data.items() if name not in others}


def source_specs(recipe: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name and keywords of the source of each split: "train", what is trained on, and the evaluators' own.

    What a probe trains on, where it is something else, is `PROBED`.
    """
    fields = _source_fields(recipe["data"])
    own = {
        PROBED if split == "train" else split: _overlaid(fields, overlay, f"config.eval_data.{split}")
        for split, overlay in recipe.get("eval_data", {}).items()
        if overlay
    }
    return {"train": fields} | own


def _checkpoint_fields(
    *,
    every_steps: float | None = None,
    every_epochs: float | None = None,
    every_examples: float | None = None,
    every_percent: float | None = None,
    keep_last: int = 2,
) -> None:
    """The fields of `config.checkpoints`."""


def _overlaid(fields: Mapping[str, Any], overlay: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The training data's fields with those of the overlay; of another source only those that it has too."""
    name = overlay.get("name", fields.get("name"))
    if name != fields.get("name"):
        known = keywords(lookup(SOURCES, name, f"{where}.name"))
        fields = {field: value for field, value in fields.items() if field in known}
    return {**fields, **overlay}


def _check_channels(evaluated: Source, source: Source, where: str) -> None:
    found, expected = evaluated.image_shape[2], source.image_shape[2]
    if found != expected:
        raise UserError(
            f"{where} has images of {found} channels, but config.data trains on {expected}. Set {where}.channels, or "
            "that of its members."
        )


def _check_count(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{where} is {value!r}; expected a whole number, one or more.")


def _build_mesh(mesh: Mapping[str, int], devices: Sequence[jax.Device] | None) -> jax.sharding.Mesh:
    check_fields(make_mesh, mesh, "config.mesh", given=("devices",))
    sizes: dict[str, Any] = dict(mesh)
    return make_mesh(**sizes, devices=devices)


def _read_rules(sharding: Sequence[Sequence[Any]]) -> Rules:
    for rule in sharding:
        if isinstance(rule, str) or len(rule) < 2 or not isinstance(rule[0], str):
            raise UserError(
                f"config.sharding: {rule!r} is no rule; expected (regex over leaf names, layout, ...), such as "
                f"{RULES[0]}."
            )
    return tuple((pattern, *layouts) for pattern, *layouts in sharding)


def _check_offload(offload: Sequence[str], mesh: jax.sharding.Mesh) -> None:
    for part in offload:
        lookup(dict.fromkeys(OFFLOADED), part, "config.offload")
    if offload and not has_host_memory(mesh):
        kind = mesh.local_devices[0].device_kind
        raise UserError(f"config.offload: JAX keeps nothing in the host's memory for a {kind}. Leave it out here.")


def _check_tensor_axis(params: Any, mesh: jax.sharding.Mesh, rules: Rules) -> None:
    """Refuses a layout that does not fit the networks, and devices that would all do the same work."""
    layout = shardings(params, mesh, rules)
    if mesh.shape["tensor"] > 1 and not any("tensor" in str(leaf.spec) for leaf in jax.tree.leaves(layout)):
        raise UserError(
            f"config.mesh.tensor is {mesh.shape['tensor']}, but no parameter of these networks is split over it: "
            "that is for transformers and prototypes. Use fsdp in its place, or name leaves with config.sharding."
        )


def _initial(init: Mapping[str, Any], networks: Mapping[str, Any]) -> InitialWeights | None:
    """Where the run starts from, if anywhere."""
    durations = {f"freeze_{unit}" for unit in UNITS}
    fields = {name: value for name, value in init.items() if name not in durations}
    if not init:
        if wanted := [role for role, spec in networks.items() if spec.get("name") == PRETRAINED]:
            raise UserError(
                f'config.networks.{wanted[0]} is "pretrained": say of which file or name with config.init.weights.'
            )
        return None
    if not fields.get("weights"):
        raise UserError(
            "config.init does not say of which weights. Give a file, a folder or a name (vfm weights list) with "
            "--config.init.weights=PATH, or --config.init=None to start fresh."
        )
    check_fields(InitialWeights, fields, "config.init")
    return InitialWeights(**fields)


def with_init(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with the defaults of `config.init` written out, where it has one."""
    if not recipe.get("init"):
        return dict(recipe)
    defaults = {name: p.default for name, p in keywords(InitialWeights).items() if p.default is not p.empty}
    return {**recipe, "init": defaults | {f"freeze_{unit}": None for unit in UNITS} | dict(recipe["init"])}


def with_pretrained(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with the networks and the views that its public weights describe written out.

    Raises:
        UserError: there are no such weights, or they do not tell.
    """
    networks = frozen.described(recipe.get("networks", {}))
    start = _initial(recipe.get("init", {}), networks)
    if start is None:
        return {**recipe, "networks": networks}
    views = {field: start.views(recipe[field]) for field in ("views", "eval_views") if field in recipe}
    return {**recipe, "networks": start.networks(networks), **views}


def _initializer(start: InitialWeights, networks: Mapping[str, Any]) -> Callable[[Any, Any], tuple[Any, Any, str]]:
    def initialize(params: Any, extra: Any) -> tuple[Any, Any, str]:
        params, extra, account = start.load(params, extra, networks)
        return params, extra, str(account)

    return initialize


def _build_network(role: str, spec: Mapping[str, Any], dtype: str) -> Any:
    if frozen.is_group(spec):  # of a role that is several networks
        return {name: _build_network(f"{role}.{name}", one, dtype) for name, one in spec.items()}
    where = f"config.networks.{role}"
    chosen = lookup(DTYPES, dtype, "config.dtype")
    return build(MODELS, spec, where, dtype=chosen)


def _check_objective(spec: Mapping[str, Any], networks: Mapping[str, Any]) -> None:
    """Refuses a method that is none, has fields it does not know, or networks that are not its own."""
    used: dict[str, None] = {}
    for where, method, member in _methods(spec):
        function = lookup(OBJECTIVES, method.get("name"), f"{where}.name")
        renamed = member.get("networks", {})
        roles = _roles(function)
        used |= {renamed.get(role, role): None for role in roles}
        required = [role for role, p in keywords(function).items() if role in roles and p.default is p.empty]
        if missing := [role for role in required if renamed.get(role, role) not in networks]:
            raise UserError(
                f"The objective {method['name']!r} needs config.networks.{renamed.get(missing[0], missing[0])}. "
                f"Networks: {', '.join(MODELS)}."
            )
        fields = _in_steps(OBJECTIVES, method, Clock(1, 1, 1), where)  # how long the run is does not matter yet
        check_fields(function, fields.keys() - {"name"}, where, given=roles)
    if unknown := sorted(set(networks) - set(used)):
        raise UserError(
            f"config.networks has {unknown[0]!r}, which the objective {spec['name']!r} does not use; "
            f"it takes {', '.join(used)}. (A stage drops a network by setting it to None.)"
        )


def _roles(function: Callable[..., Any]) -> list[str]:
    """The networks that a method takes: its arguments that may stand without a name."""
    return [name for name, p in keywords(function).items() if p.kind is p.POSITIONAL_OR_KEYWORD]


def _methods(spec: Mapping[str, Any]) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Where each method of an objective stands, its own fields, and those of a `Member`; one, unless they combine."""
    if spec.get("name") != "combine":
        return [("config.objective", dict(spec), {})]
    check_fields(combine, set(spec) - {"name"}, "config.objective")
    found = []
    for i, fields in enumerate(spec["members"]):
        where = f"config.objective.members[{i}]"
        member = {"label": fields.get("name"), **{k: v for k, v in fields.items() if k in MEMBER_FIELDS}}
        found.append((where, {k: v for k, v in fields.items() if k not in MEMBER_FIELDS}, member))
    return found


def _build_objective(spec: Mapping[str, Any], networks: Mapping[str, Any], clock: Clock) -> Objective:
    built = []
    for where, method, member in _methods(spec):
        fields = _with_schedules(_in_steps(OBJECTIVES, method, clock, where), clock, where)
        renamed = member.get("networks", {})
        roles = {role: renamed.get(role, role) for role in _roles(OBJECTIVES[method["name"]])}
        own = {role: networks[name] for role, name in roles.items() if name in networks}
        objective = build(OBJECTIVES, fields, where, **own)
        if spec["name"] != "combine":
            return objective
        own = _in_steps({"member": Member}, {"name": "member", **member}, clock, where)
        del own["name"]
        built.append(Member(objective, **_with_schedules(own, clock, where)))
    return combine(members=built)


def _build_schedule(spec: Mapping[str, Any], clock: Clock, where: str) -> Schedule:
    fields = _in_steps(SCHEDULES, spec, clock, where)
    try:
        return build(SCHEDULES, fields, where, total_steps=clock.total_steps)
    except UserError as error:
        raise error if where in str(error) else UserError(f"{where}: {error}") from error


def _with_schedules(spec: Mapping[str, Any], clock: Clock, where: str) -> dict[str, Any]:
    """The fields of `spec` with those that are dicts with a name, as `config.schedule` is, made into schedules."""
    return {
        field: _build_schedule(value, clock, f"{where}.{field}")
        if isinstance(value, Mapping) and "name" in value
        else value
        for field, value in spec.items()
    }


def _optimizer_fields(spec: Mapping[str, Any], clock: Clock) -> dict[str, Any]:
    """The spec with the schedules and the durations of its own fields, and of its groups', ready for use."""
    fields = _with_schedules(spec, clock, "config.optimizer")
    if fields.get("groups"):
        fields["groups"] = tuple(
            _with_schedules(_durations_of(Group, group, clock, where), clock, where)
            for i, group in enumerate(fields["groups"])
            for where in [f"config.optimizer.groups[{i}]"]
        )
    return fields


def _build_views(views: Mapping[str, Any], mix: Mapping[str, Any]) -> Callable[[jax.Array, Batch], Batch]:
    of_images = build_views(views)

    def single(key: jax.Array, batch: Batch) -> Batch:
        return of_images(key, take_rows(batch))

    if not mix:
        return single
    check_fields(mixup_cutmix, mix, "config.mix")
    blend = mixup_cutmix(**mix)

    def apply(key: jax.Array, batch: Batch) -> Batch:
        # One draw for the batch, from its first example: no two batches begin with the same one in the same epoch.
        own = example_keys(stream(key, "mix"), batch["epoch"][:1], batch["index"][:1])[0]
        return blend(own, single(key, batch))

    return apply


def _build_ema(spec: Mapping[str, Any]) -> Callable[[Any, Any, jax.Array], Any] | None:
    if not spec:
        return None
    check_fields(ema_momentum, spec, "config.ema", given=("step",))
    momentum = spec.get("momentum", keywords(ema_momentum)["momentum"].default)
    if not callable(momentum) and not 0 <= momentum < 1:
        raise UserError(f"config.ema.momentum is {momentum}; expected a number in [0, 1), such as 0.9999.")
    return lambda ema, params, step: update_ema(ema, params, ema_momentum(step, **spec))


def _build_tracker(spec: Mapping[str, Any]) -> Tracker | None:
    if not spec:
        return None
    check_fields(track_profiles, spec, "config.posthoc_ema")
    return track_profiles(**spec)


def _build_feature_cache(spec: Mapping[str, Any]) -> FeatureCache | None:
    if spec.get("path") is None:
        return None
    check_fields(FeatureCache, spec, "config.feature_cache")
    return FeatureCache(**spec)


def _check_features_fit(
    cache: FeatureCache,
    objective: Objective,
    abstract: Variables,
    views: Callable[[jax.Array, Batch], Batch],
    sources: Mapping[str, Source],
) -> None:
    """Refuses a cache that could never hold the features of all splits, whatever the pooling."""

    def predict(variables: Variables, key: jax.Array, sample: Batch) -> Any:
        return objective.predict["features"](variables, views(key, sample))

    for_one = _sample(sources["test"])
    found = jax.eval_shape(predict, abstract, jax.random.key(0), for_one)
    width = max(found.pooled.shape[-1], found.tokens.shape[-1])
    cache.check_fits(sum(map(len, sources.values())), width)


def _evaluator_fields(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    due = {f"every_{unit}" for unit in UNITS}
    return {"name": name} | {field: value for field, value in spec.items() if field not in due}


def _baseline_evaluators(baseline: str, evals: Mapping[str, Any]) -> dict[str, Evaluator]:
    """The evaluators of a representation; those of a trained head have no meaning for a baseline."""
    evaluators = {}
    for name, spec in evals.items():
        fields = _evaluator_fields(name, spec)
        pools = "pool" in keywords(EVALUATORS[fields["name"]])
        pixels = {"pool": "pixels"} if pools and baseline == "raw_pixels" else {}
        built = build(EVALUATORS, fields | pixels, f"config.evals.{name}")
        if pools or ("text_features" in built.needs and baseline == "random_init"):
            evaluators[name] = built
    return evaluators


def _denormalizer(views: Mapping[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """From what the network sees back to intensities in [0, 1], for pictures."""
    ops = [op for view in listed(views) for op in view["ops"] if op["name"] == "normalize"]
    mean, std = (np.asarray(ops[0][field], np.float32) for field in ("mean", "std")) if ops else (0.0, 1.0)
    return lambda image: np.clip(image * std + mean, 0, 1).astype(np.float32)


def _in_steps(table: Mapping[str, Any], spec: Mapping[str, Any], clock: Clock, where: str) -> dict[str, Any]:
    """The spec with each duration in steps, as the callee wants it: `warmup_epochs=40` becomes `warmup_steps=...`."""
    return _durations_of(lookup(table, spec.get("name"), f"{where}.name"), spec, clock, where)


def _durations_of(function: Callable[..., Any], spec: Mapping[str, Any], clock: Clock, where: str) -> dict[str, Any]:
    fields = dict(spec)
    for keyword in keywords(function):
        if keyword.endswith("_steps") and keyword != "total_steps":
            stem = keyword.removesuffix("_steps")
            steps = read_durations(fields, stem, clock, where)
            fields = {k: v for k, v in fields.items() if k not in {f"{stem}_{unit}" for unit in UNITS}}
            if steps is not None:
                fields[keyword] = steps
    return fields


def _build_source(fields: Mapping[str, Any], where: str, holding: Mapping[str, Any]) -> Source:
    source = build(SOURCES, fields, where)
    if not holding["cache"] or (where != "config.data" and not hasattr(source, "read")):
        return source  # evaluation data of another kind than the training's need not have files
    check_fields(cached, holding["cache"], "config.data.cache", given=("source",))
    return cached(source, **holding["cache"])


def _cropped(source: Any, holding: Mapping[str, Any], seed: int, stage: int) -> Source:
    if not holding["crop"]:
        return source
    if holding["cache"]:
        raise UserError(
            "config.data sets both crop and cache: a crop is cut out of the file, another in each epoch, and a cache "
            "keeps whole pictures. Keep one of them; with the cache, put random_resized_crop first in config.views."
        )
    check_fields(Crop, holding["crop"], "config.data.crop")
    return CroppedSource(source, Crop(**holding["crop"]), seed=seed, stage=stage)


def _host_crop(
    views: Mapping[str, Any],
    mix: Mapping[str, Any],
    source: Any,
    holding: Mapping[str, Any],
    resident: bool,
    **of_run: int,
) -> HostCrop | None:
    """What `config.data.crop` could say, if the views are one that begins with a crop as the host makes it.

    Which of the two makes the crop is the recipe's to say, and never the backend's: they draw other random numbers
    and resize in other ways, and one recipe is the same run on every device. `vfm data` measures, and advises: on
    CPUs the host is the better place (scripts/bench/README.md, "Host or device"); accelerators were not measured.
    """
    view = next(iter(views.values()))
    if len(views) > 1 or not isinstance(view, Mapping) or view.get("num_views") is not None:
        return None
    if (
        holding["crop"]
        or holding["cache"]
        or resident
        or not hasattr(source, "read")
        or getattr(source, "fields", {})
    ):
        return None
    ops = [dict(op) for op in view["ops"]]
    if (
        not ops
        or ops[0].pop("name") != "random_resized_crop"
        or ops[0].pop("interpolation", "bilinear") != "bilinear"
    ):
        return None
    flips = len(ops) > 1 and ops[1]["name"] == "flip"
    flip = ops[1].get("probability", keywords(VIEW_OPS["flip"])["probability"].default) if flips else 0.0
    taken = 1 + flips
    rest = {field: {**spec, "ops": tuple(spec["ops"][taken:])} for field, spec in views.items()}
    crop = Crop(**ops[0], flip=float(flip))
    return HostCrop(crop, taken, CroppedSource(source, crop, **of_run), _build_views(rest, mix))


def _is_resident(source: Source, holding: Mapping[str, Any], mesh: jax.sharding.Mesh) -> bool:
    """As the recipe says; by default where the images are in memory already, and small for the devices."""
    asked = holding["resident"]
    if asked is False or (asked is None and not hasattr(source, "__getitems__")):
        return False
    if asked not in (None, True):
        raise UserError(
            f"config.data.resident is {asked!r}; expected True, False, or None to leave it to the program."
        )
    needed, limit = stored_bytes(source), device_memory(mesh.local_devices)
    if asked is None:
        return needed <= min(RESIDENT_BYTES, RESIDENT_RATIO * limit)
    if holding["crop"]:
        raise UserError(
            "config.data sets both crop and resident: what lies on the devices is cropped there. Leave "
            "config.data.crop out, and put random_resized_crop first in config.views."
        )
    if needed > limit / 2:
        raise UserError(
            f"config.data.resident: {len(source):,} images of {' x '.join(map(str, source.image_shape))} take "
            f"{needed / 1e9:.3g} GB on each device, which has {limit / 1e9:.3g} GB, and half of it is for the run. "
            "Leave config.data.resident out, or lower config.data.canvas_size."
        )
    return True


def _sample(source: Source) -> Batch:
    rows = blank_rows(source, 2)
    rows["size"][:] = source.image_shape[:2]
    if "texts" in rows:
        rows |= {"text": rows["texts"][:, 0], "num_texts": np.ones(2, np.int32)}
    rows |= {"epoch": np.zeros(2, np.int32), "valid": np.ones(2, bool)}
    return {name: values for name, values in rows.items() if name not in _implied(source)}


def _abstract_batch(source: Source, batch_size: int, mesh: jax.sharding.Mesh) -> Batch:
    """Shapes, dtypes and layout of a source's batches, on the devices."""
    layout = batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((batch_size, *rows.shape[1:]), rows.dtype, sharding=layout)
        for name, rows in _sample(source).items()
    }


def _implied(source: Source) -> tuple[str, ...]:
    """Fields that need not travel: where all photos fill their canvases, the views may know that when traced."""
    return ("size",) if isinstance(source, CroppedSource) else ()


def _abstract_variables(objective: Objective, views: Callable[..., Batch], sample: Batch) -> Variables:
    """Shapes of everything learned; where a recipe's sizes do not fit together, this is where it shows."""
    try:
        return jax.eval_shape(lambda key, sample: objective.init(key, views(key, sample)), jax.random.key(0), sample)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"The networks do not fit the views. {error}") from error


def _check_labels(source: Source, networks: Mapping[str, Any], where: str) -> None:
    for role, spec in networks.items():
        if "num_classes" not in spec:
            continue
        if source.class_names is None:
            raise UserError(f"{where}.{role} classifies, but the data has no labels: use one subfolder per class.")
        if spec["num_classes"] < len(source.class_names):
            raise UserError(
                f"{where}.{role}.num_classes is {spec['num_classes']}, but the data has "
                f"{len(source.class_names)} classes. Set it to {len(source.class_names)}."
            )


def _check_texts(source: Source, networks: Mapping[str, Any], where: str) -> None:
    """Refuses a text network without room for the data's token ids: a lookup past the end is no error in JAX."""
    tokenizer = getattr(source, "tokenizer", None)
    if tokenizer is None:
        return
    for role, spec in networks.items():
        known = spec.get("vocabulary", getattr(lookup(MODELS, spec["name"], where), "vocabulary", None))
        if known is not None and known < tokenizer.vocabulary_size:
            raise UserError(
                f"{where}.{role}.vocabulary is {known}, but the tokenizer has {tokenizer.vocabulary_size} ids. "
                f"Set it to {tokenizer.vocabulary_size}."
            )


def complete(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with every field that it leaves to a default written out, for overrides and for the record."""
    full: dict[str, Any] = dict(RUN_FIELDS)
    for name, p in keywords(build_experiment).items():
        if name not in PROGRAMS_OWN and p.default is not p.empty:
            full[name] = p.default
    full |= {name: dict(value) if isinstance(value, Mapping) else value for name, value in recipe.items()}
    tables = dict(data=SOURCES, objective=OBJECTIVES, optimizer=OPTIMIZERS, schedule=SCHEDULES)
    for field, table in tables.items():
        full[field] = _with_defaults(table, full.get(field, {}))
    full["data"] = LOADER | HOLDING | full["data"]
    for field, function in dict(mesh=make_mesh, checkpoints=_checkpoint_fields).items():
        defaults = {name: p.default for name, p in keywords(function).items() if name != "devices"}
        full[field] = defaults | dict(full[field] or {})
    full["feature_cache"] = FEATURE_CACHE | dict(full["feature_cache"] or {})
    due = {f"every_{unit}": None for unit in UNITS}
    full = with_pretrained(with_init(full))
    full["networks"] = {role: _with_defaults(MODELS, spec) for role, spec in full.get("networks", {}).items()}
    full["evals"] = {
        name: _with_defaults(EVALUATORS, {"name": name} | due | dict(spec)) for name, spec in full["evals"].items()
    }
    return full


def _with_defaults(table: Mapping[str, Callable[..., Any]], spec: Mapping[str, Any]) -> dict[str, Any]:
    function = table.get(spec.get("name"))
    if function is None:
        return dict(spec)  # building it will say so
    plain = (bool, int, float, str, tuple, type(None))
    networks = _roles(function) if table is OBJECTIVES else ()  # they stand in `config.networks`
    settings = {name: p for name, p in keywords(function).items() if name not in networks}
    defaults = {name: p.default for name, p in settings.items() if isinstance(p.default, plain)}
    durations = [name for name in defaults if name.endswith("_steps") and name != "total_steps"]
    for name in durations:  # may be given in any unit; which one is for the recipe, or a stage, to say
        del defaults[name]
        defaults |= {f"{name.removesuffix('_steps')}_{unit}": None for unit in UNITS}
    return defaults | dict(spec)
