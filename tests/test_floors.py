"""The house: every file imports from below only, and a config object goes no lower than `experiment`."""

import ast
import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).parent.parent
PACKAGE = REPOSITORY / "vfm_jax"

# Rooms that stand on each floor, and what each may import besides itself. `vfm_jax/__init__.py` (the version) is "".
FLOOR_1 = {"core", "report"}
FLOOR_2 = {"nn", "losses", "metrics", "augment", "data", "optim"}
FLOOR_3 = {"models", "objectives", "evaluators", "peft"}
# `weights` gives networks with their weights, so it stands between the networks and the experiment.
BELOW_EXPERIMENT = FLOOR_2 | FLOOR_3 | {"weights"}
ALLOWED = {
    "": set(),
    **{room: set() for room in FLOOR_1},
    **{room: {"core"} for room in FLOOR_2},
    **{room: {"core"} | FLOOR_2 for room in FLOOR_3},
    "weights": {"core", "nn", "models", "data"},
    "embed": {"core", "data", "weights", "evaluators"},
    "experiment": FLOOR_1 | BELOW_EXPERIMENT,
    "train": {"experiment", "report", "core"},
    "export": {"train", "experiment", "weights", "core"},
    "plan": {"train", "experiment", "report", "core"},
    "data_report": {"train", "experiment", "data", "report", "core"},
    "cli": {"", "export", "plan", "train", "embed", "data_report", "experiment"} | FLOOR_1 | BELOW_EXPERIMENT,
}

CONFIG_READERS = {"cli.py", "experiment.py", "train/stages.py"}

# Slow to import, or not everybody's: imported in the function that needs them.
LAZY = {
    "array_record",
    "fsspec",
    "grain",
    "huggingface_hub",
    "matplotlib",
    "mlxtend",
    "orbax",
    "pyarrow",
    "rich",
    "sentencepiece",
    "skimage",
    "sklearn",
    "tensorboardX",
    "tensorflow_datasets",
    "tokenizers",
    "wandb",
}


def imported_modules(tree: ast.AST, package: str = "") -> set[str]:
    """Dotted names of all modules that the code imports, lazily too; `from a import b` gives a and a.b."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            anchor = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*anchor, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def imported_rooms(tree: ast.AST, package: str = "") -> set[str]:
    """Rooms of the package that the code imports from; "" for `vfm_jax` itself."""
    names = {name for name in imported_modules(tree, package) if name.split(".")[0] == "vfm_jax"}
    rooms = {name.split(".")[1] for name in names if "." in name}
    return {room if room in ALLOWED else "" for room in rooms}


def module_level(tree: ast.Module) -> ast.Module:
    """The code that runs at import: without functions, and without what only a type checker reads."""
    body = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    body = [n for n in body if not (isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test))]
    classes = [n for n in body if isinstance(n, ast.ClassDef)]
    inside = [part for n in classes for part in module_level(ast.Module(body=n.body, type_ignores=[])).body]
    return ast.Module(body=[n for n in body if n not in classes] + inside, type_ignores=[])


def room_of(file: pathlib.Path) -> str:
    """The room a file of the package belongs to: its folder or its own name below `vfm_jax`."""
    first = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


FILES = sorted(PACKAGE.rglob("*.py"))
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.py"))
by_path = pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(PACKAGE).as_posix())


def read(file: pathlib.Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def package_of(file: pathlib.Path) -> str:
    """The dotted name of the package a file lies in, which its relative imports start from."""
    return ".".join(file.relative_to(REPOSITORY).parent.parts)


@by_path
def test_a_file_imports_from_the_floors_below_only(file):
    room = room_of(file)
    assert room in ALLOWED, f"{room} is no room of the house; give it a floor in the design and here"
    assert imported_rooms(read(file), package_of(file)) - {room} <= ALLOWED[room]


@by_path
def test_a_config_object_is_read_in_cli_stages_and_experiment_only(file):
    if file.relative_to(PACKAGE).as_posix() in CONFIG_READERS:
        return
    tree = read(file)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert "ConfigDict" not in names
    assert not {name for name in imported_modules(tree) if name.split(".")[0] == "ml_collections"}


@by_path
def test_slow_imports_wait_until_they_are_needed(file):
    assert not LAZY & {name.split(".")[0] for name in imported_modules(module_level(read(file)))}


@by_path
def test_neither_tensorflow_nor_torch_nor_a_recipe_is_imported(file):
    roots = {name.split(".")[0] for name in imported_modules(read(file), package_of(file))}
    assert not roots & {"tensorflow", "torch", "configs", "tests"}


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.relative_to(REPOSITORY).as_posix())
def test_a_recipe_imports_the_config_library_and_the_shared_values_only(file):
    """And what arithmetic needs of Python itself."""
    names = imported_modules(read(file), package_of(file))
    apart = {name for name in names if name.split(".")[0] not in ("ml_collections", "math", "re")}
    assert not {name for name in apart if not f"{name}.".startswith("configs.common.")}


def test_the_command_line_starts_without_jax():
    """Its help must come at once, and jax alone takes a second to import."""
    code = "import sys, vfm_jax.cli; print(*sorted({'jax', 'flax', 'numpy', 'absl'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("code", "package", "rooms"),
    [
        ("from vfm_jax.models.vit import ViT", "", {"models"}),
        ("from vfm_jax import objectives, nn", "", {"objectives", "nn"}),
        ("import vfm_jax.core.trees as trees", "", {"core"}),
        ("from vfm_jax import __version__", "", {""}),
        ("from ..optim import groups", "vfm_jax.objectives", {"optim"}),
        ("from .interface import Objective", "vfm_jax.objectives", {"objectives"}),
        ("def f():\n    from vfm_jax.data import pipeline", "", {"data"}),
        ("import jax, vfm_jaxon", "", set()),
    ],
)
def test_every_way_of_importing_is_seen(code, package, rooms):
    assert imported_rooms(ast.parse(code), package) == rooms


def test_imports_in_functions_are_lazy_and_those_in_classes_are_not():
    code = """
import a
if TYPE_CHECKING:
    import b
def f():
    import c
class D:
    import d
    def g(self):
        import e
"""
    assert imported_modules(module_level(ast.parse(code))) == {"a", "d"}
