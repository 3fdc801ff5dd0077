"""Trained runs as folders for transformers and timm: what they compute, and what their model card says."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax import cli
from vfm_jax.core.errors import UserError
from vfm_jax.data.sources import SOURCES
from vfm_jax.data.sources.arrays import ArraySource
from vfm_jax.export.weights import export_weights, model_card, read_run
from vfm_jax.train.checkpoint import restore_params
from vfm_jax.train.loop import train
from vfm_jax.weights.describe import import_weights
from vfm_jax.weights.load import as_variables, load_pretrained, make_model, read_weights

MODELS = pathlib.Path(__file__).parents[1] / "golden" / "models"
NORMALIZE = dict(name="normalize", mean=0.5, std=0.25)
HEAD = dict(name="linear_head", num_classes=5)
VIT = dict(name="vit", variant="B/8", width=24, depth=2, mlp_dim=48, heads=3)
RESNET = dict(name="resnet", block="basic", depths=(1, 1, 1, 1), widths=(64, 8, 12, 16), stem_width=64)
CONVNEXT = dict(name="convnext", depths=(1, 1, 1, 1), widths=(8, 12, 16, 20))
TOLERANCE = dict(rtol=1e-3, atol=1e-4)

RUNS = {
    "mae": dict(
        objective=dict(name="mae"),
        networks=dict(
            encoder=VIT | dict(positions="sincos2d"),
            decoder=dict(name="masked_decoder", width=20, depth=1, heads=2),
        ),
    ),
    "vit": dict(networks=dict(encoder=VIT, head=HEAD), ema=dict(momentum=0.5), title="Letters told apart"),
    "resnet": dict(networks=dict(encoder=RESNET, head=HEAD)),
    "convnext": dict(networks=dict(encoder=CONVNEXT, head=HEAD)),
    "continued": dict(
        networks=dict(encoder=dict(name="pretrained"), head=HEAD),
        init=dict(weights="IMPORTED"),
        eval_views=dict(image=dict(ops=(NORMALIZE,))),
        evals=dict(classification=dict()),
        eval_data=dict(test=dict(split="test")),
    ),
}


def noise(*, split="train"):
    """A labelled source that needs no file."""
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), np.uint8)
    return ArraySource(images, np.arange(32) % 5, class_names=tuple("abcde"), described=f"noise {split}")


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """Public weights as they lie with a user: a folder whose card names a licence, in a place nobody should read."""
    folder = tmp_path_factory.mktemp("secret") / "letters-vit"
    shutil.copytree(MODELS / "hf_vit_cls", folder)
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: cc-by-nc-4.0\n---\n# Letters\n")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, public):
    """name -> workdir of that run, trained when first asked for."""
    home, made = tmp_path_factory.mktemp("runs"), {}

    def run(name):
        if name not in made:
            base = dict(
                seed=0,
                total_steps=2,
                log_every_steps=1,
                data=dict(name="noise", batch_size=8),
                views=dict(image=dict(ops=(NORMALIZE,))),
                objective=dict(name="supervised"),
                optimizer=dict(name="adamw"),
                schedule=dict(name="constant", base=1e-2),
                checkpoints=dict(every_steps=1, keep_last=9),
            )
            recipe = base | RUNS[name]
            if "init" in recipe:
                recipe["init"] = dict(weights=str(public))
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(SOURCES, "noise", noise)
                train(recipe, home / name)
            made[name] = home / name
        return made[name]

    return run


def outputs(model, variables, pixels):
    def run(variables, pixels):
        pooled = model.apply(variables, pixels).pooled
        return (pooled, model.apply(variables, pixels, method="logits")) if "head" in variables["params"] else pooled

    made = jax.jit(run)(jax.tree.map(jnp.asarray, variables), pixels)
    return [np.asarray(value) for value in jax.tree.leaves(made)]


def of_run(workdir, pixels):
    bundle, leaves, _, _ = read_run(workdir)
    leaves = {leaf: value for leaf, value in leaves.items() if not leaf[1].startswith("decoder")}
    networks = {role: spec for role, spec in bundle.networks.items() if role != "decoder"}
    return outputs(make_model(networks), as_variables(leaves), pixels)


PIXELS = np.random.default_rng(1).standard_normal((2, 32, 32, 3)).astype(np.float32)
FAMILIES = {
    "mae": ("hf/vit_mae", "timm/vit"),
    "vit": ("hf/vit", "timm/vit"),
    "resnet": ("hf/resnet", "timm/resnet"),
    "convnext": ("hf/convnext", "timm/convnext"),
}
BOTH = [(name, format) for name in FAMILIES for format in ("hf", "timm")]


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """(run, format) -> what the export made."""
    home, made = tmp_path_factory.mktemp("out"), {}

    def export(name, format):
        if (name, format) not in made:
            made[name, format] = export_weights(trained(name), format, home / f"{name}-{format}")
        return made[name, format]

    return export


@pytest.mark.parametrize(("name", "format"), BOTH)
def test_an_exported_run_computes_what_the_run_does(name, format, trained, exported):
    made = exported(name, format)
    assert made.family == FAMILIES[name][format == "timm"]
    loaded = load_pretrained(made.folder)
    assert not loaded.account.unused
    variables = loaded.variables
    kept = {"params": {k: v for k, v in variables["params"].items() if k != "decoder"}}
    kept |= {k: v for k, v in variables.items() if k != "params"}
    for found, wanted in zip(outputs(loaded.model, kept, PIXELS), of_run(trained(name), PIXELS), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    settings = loaded.preprocessing.settings
    assert (settings.size, settings.mean, settings.std) == ((32, 32), (0.5,) * 3, (0.25,) * 3)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "format"), BOTH)
def test_an_exported_run_computes_the_same_in_its_library(name, format, trained, exported):
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    library = pytest.importorskip({"hf": "transformers"}.get(format, format), reason="needs the extra `parity`")
    folder = exported(name, format).folder
    wanted = of_run(trained(name), PIXELS)
    image = torch.from_numpy(PIXELS.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        if format == "timm":
            model = library.create_model(f"local-dir:{folder}", pretrained=True).eval()
            found = model(image)
        elif name == "mae":
            model = library.ViTMAEModel.from_pretrained(folder, mask_ratio=0.0).eval()
            found = model(image, noise=torch.arange(16.0)[None].repeat(2, 1)).last_hidden_state[:, 0]
        else:
            kind = getattr(library, json.loads((folder / "config.json").read_text())["architectures"][0])
            model, info = kind.from_pretrained(folder, output_loading_info=True)
            assert not any(info.values()), info
            found = model.eval()(image).logits
    np.testing.assert_allclose(found.numpy(), wanted[-1], **TOLERANCE)


def test_the_running_average_is_what_is_exported(trained, exported):
    saved = restore_params(trained("vit"))
    loaded = load_pretrained(exported("vit", "timm").folder).variables["params"]
    kernel = loaded["head"]["logits"]["kernel"]
    np.testing.assert_array_equal(kernel, saved.ema["head"]["logits"]["kernel"])
    assert (np.asarray(kernel) != saved.params["head"]["logits"]["kernel"]).any()
    assert "running average" in (exported("vit", "timm").folder / "README.md").read_text()


def test_batch_statistics_go_along(trained, exported):
    saved = restore_params(trained("resnet")).extra["encoder"]["batch_stats"]["stem_norm"]["norm"]["mean"]
    loaded = load_pretrained(exported("resnet", "hf").folder).variables["batch_stats"]
    np.testing.assert_array_equal(loaded["encoder"]["stem_norm"]["norm"]["mean"], saved)
    assert np.abs(saved).max() > 0


def test_what_served_training_alone_is_left_out_and_the_card_says_so(exported):
    made = exported("mae", "timm")
    assert "left out, as they served training alone: decoder" in made.notes
    assert "decoder" in (made.folder / "README.md").read_text()


def test_one_step_of_a_run_can_be_exported(trained, tmp_path):
    steps = [trained("vit") / "checkpoints" / "train" / str(step) for step in (1, 2)]
    first, second = (export_weights(step, "hf", tmp_path / step.name) for step in steps)
    latest = export_weights(trained("vit") / "checkpoints", "hf", tmp_path / "latest")
    weights = [(made.folder / "model.safetensors").read_bytes() for made in (first, second, latest)]
    assert weights[0] != weights[1] == weights[2]
    assert "1 steps, 8 examples" in (first.folder / "README.md").read_text()


# ---------------------------------------------------------------------------------------------------- the model card


def test_the_card_of_a_run_says_how_it_was_trained(exported):
    card = (exported("vit", "timm").folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\n")
    for words in (
        "# Letters told apart",
        "Source weights: none, trained from scratch",
        "Objective: supervised",
        "2 steps, 16 examples seen",
        "Data: noise (batch_size 8), 32 images",
        "vfm_jax 0.",
        "jax 0.",
        "schedule.base = 0.01",
        "encoder: vit (variant B/8",
    ):
        assert words in card, words


def test_the_card_names_public_weights_and_their_licence_and_no_place_on_the_machine(trained, public, tmp_path):
    made = export_weights(trained("continued"), "hf", tmp_path / "out")
    card = (made.folder / "README.md").read_text()
    assert "license: cc-by-nc-4.0\n" in card
    assert "Source weights: letters-vit\n" in card
    assert "Licence of the source weights: cc-by-nc-4.0\n" in card
    assert "init.weights = '.../letters-vit'" in card
    assert "| pretrained | classification/accuracy | " in card
    for text in (card, (made.folder / "config.json").read_text()):
        assert str(public.parent) not in text
        assert str(trained("continued").parent) not in text


def test_the_licence_travels_through_a_folder_of_ours(public, tmp_path):
    import_weights(public, tmp_path / "imported")
    weights = read_weights(tmp_path / "imported")
    weights.file.close()
    assert weights.licence == "cc-by-nc-4.0"
    assert str(public.parent) not in (tmp_path / "imported" / "config.json").read_text()
    made = export_weights(tmp_path / "imported", "hf", tmp_path / "out")
    card = (made.folder / "README.md").read_text()
    assert "Source weights: letters-vit" in card
    assert "license: cc-by-nc-4.0" in card


def test_the_card_of_a_named_checkpoint_has_its_licence_and_its_repository():
    facts = {"title": "x", "source": "vit_base_patch16_224.mae", "licence": "cc-by-nc-4.0", "networks": {}}
    card = model_card(facts, "timm/vit", ("nothing",))
    assert "base_model: timm/vit_base_patch16_224.mae\n" in card
    assert "license: cc-by-nc-4.0\n" in card
    assert "Changed on the way: nothing" in card


def test_places_are_taken_out_of_a_recipe_and_patterns_are_not(trained):
    _, _, _, facts = read_run(trained("vit"))
    added = {"a": "/somewhere/deep/photos", "b": ("gs://bucket/photos",), "c": "^encoder/", "d": "../near/photos"}
    card = model_card({**facts, "recipe": {**facts["recipe"], **added}}, "hf/vit")
    for line in ("a = '.../photos'", "b = ('.../photos',)", "c = '^encoder/'", "d = '.../photos'"):
        assert line in card
    assert "deep" not in card
    assert "bucket" not in card


# -------------------------------------------------------------------------------------------------------- mistakes


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="No checkpoint in"):
        export_weights(tmp_path / "run", "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_not_written_to(trained, tmp_path):
    with pytest.raises(UserError, match="is there already"):
        export_weights(trained("vit"), "hf", tmp_path)


def test_a_model_that_no_library_has_is_refused_with_the_nearest_and_the_difference(trained, tmp_path, capsys):
    words = ["weights", "export", str(trained("continued")), "--format=timm", f"--out={tmp_path / 'out'}"]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert "timm/vit: encoder: " in said
    assert "norm_epsilon is 1e-12, there 1e-06" in said
    assert "--format=vfm" in said
    assert len(said.strip().splitlines()) <= 5
    assert not (tmp_path / "out").exists()


def test_the_command_exports_a_run(trained, tmp_path, capsys):
    words = ["weights", "export", str(trained("vit")), "--format=vfm", f"--out={tmp_path / 'out'}"]
    assert cli.main(words) == 0
    assert "tensors as vfm_jax" in capsys.readouterr().out
    assert load_pretrained(tmp_path / "out").account.family == "vfm_jax"
