"""The sizes of ConvNeXt V2: Woo et al., 2023."""

from tests.recipes.fcmae import FCMAE, encoder
from vfm_jax.cli import load_recipe

STAGES = {("fcmae", "sizes", "architectures"): FCMAE}
COMPARED = 10
SIZES = ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")


def _of(size, place):
    """Reads the blocks or the widths of the stages of another size: the facts of all stand in one table."""
    return lambda recipe: list(encoder(load_recipe(f"{FCMAE}:{size[0]}")).sizes[place])


READERS = {f"{size}.{field}": _of(size, place) for size in SIZES for place, field in enumerate(("depths", "dims"))}
