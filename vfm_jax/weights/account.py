"""What became of every leaf and every tensor of a load, to be printed before anything is computed with it."""

import dataclasses
from collections.abc import Sequence

SHOWN = 12  # names a list shows before it counts the rest; `names()` has them all


@dataclasses.dataclass
class Account:
    """A load, leaf by leaf.

    Attributes:
        source: the file, or the name it was asked for by.
        family: whose naming it is.
        licence: of the weights; "" where nobody said.
        loaded: leaves of ours that come from the file, the resampled ones among them.
        resampled: leaf -> what was done to it.
        fresh: leaves of ours that the file does not have: they stay as initialised.
        unused: tensors of the file that no leaf took.
        buffers: tensors of the file that hold nothing learned.
        assumed: what the file does not say and was taken from its authors' code or from the user.
        notes: what else the reader should know.
    """

    source: str
    family: str
    licence: str = ""
    loaded: list[str] = dataclasses.field(default_factory=list)
    resampled: dict[str, str] = dataclasses.field(default_factory=dict)
    fresh: list[str] = dataclasses.field(default_factory=list)
    unused: list[str] = dataclasses.field(default_factory=list)
    buffers: list[str] = dataclasses.field(default_factory=list)
    assumed: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        licence = self.licence or "not known; see where the file is from"
        counts = f"loaded {len(self.loaded)}, fresh {len(self.fresh)}, unused {len(self.unused)}"
        counts += f", resampled {len(self.resampled)}"
        lines = [f"{self.source}: read as {self.family}. Licence: {licence}.", f"  leaves: {counts}"]
        alike: dict[str, list[str]] = {}
        for leaf, how in self.resampled.items():
            alike.setdefault(how, []).append(leaf)
        lines += [f"  resampled {some(names)}: {how}" for how, names in alike.items()]
        lines += [
            f"  {word}: {some(names)}" for word, names in (("fresh", self.fresh), ("unused", self.unused)) if names
        ]
        if self.buffers:
            lines.append(f"  tensors with nothing learned in them: {len(self.buffers)}")
        if self.assumed:
            lines.append(f"  not in the file, assumed: {'; '.join(self.assumed)}")
        return "\n".join(lines + [f"  {note}" for note in self.notes])

    def names(self) -> str:
        """Every name, one a line, under its heading."""
        lists = {"loaded": self.loaded, "fresh": self.fresh, "unused": self.unused, "buffer": self.buffers}
        return "\n".join(f"{word:7} {name}" for word, names in lists.items() for name in names)


def some(names: Sequence[str], shown: int = SHOWN) -> str:
    """The first names in one line, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
