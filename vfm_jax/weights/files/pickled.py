"""The part of pickle that PyTorch's files of weights are written in, read as data.

A pickle is a program that may call anything. Here it is run by an interpreter of our own over the opcodes that
`torch.save` writes. The names of classes and functions in it are never looked up: each stands in the table below,
with what it means for a file of tensors, or the file is refused. Neither torch nor Python's unpickler is involved.

Opcodes: Lib/pickletools.py of CPython. What a tensor consists of: torch/_utils.py, `_rebuild_tensor_v2`.
"""

import math
import pickletools
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from vfm_jax.weights.files.interface import BFLOAT16, MAX_DIMENSIONS

MAX_PICKLE = 32_000_000  # bytes
MAX_OPCODES = 400_000  # a training checkpoint of a network of 40 blocks takes some 60,000
MAX_DEPTH = 64
MAX_NAME = 4096  # letters
MAX_NAMES = 200_000


class Refused(Exception):
    """The pickle is not one of tensors. The caller, who knows the file's name, makes the user's error of it."""


class Opaque(NamedTuple):
    """Something that is no tensor and whose content is not made (a numpy number, a path)."""

    name: str


class Name(NamedTuple):
    """A class or function that the pickle names; nothing stands behind it."""

    name: str


class Storage(NamedTuple):
    """A run of numbers of one type; `start` and `size` count items.

    Views of the legacy format start within the storage of `key`, all others at 0.
    """

    key: str
    dtype: np.dtype | None  # None: bytes whose type the tensor gives
    size: int
    start: int
    total: int


class StridedTensor(NamedTuple):
    """A view of a storage: positions and strides count items."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def reach(self) -> int:
        """Number of items from the first to the last one."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class Attributes(dict):
    """An object's attributes by name; nothing else of it is made."""


DTYPES = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": BFLOAT16,
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint64": np.dtype("<u8"),
    "uint32": np.dtype("<u4"),
    "uint16": np.dtype("<u2"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
}
_STORAGES = {
    "torch DoubleStorage": "float64",
    "torch FloatStorage": "float32",
    "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16",
    "torch LongStorage": "int64",
    "torch IntStorage": "int32",
    "torch ShortStorage": "int16",
    "torch CharStorage": "int8",
    "torch ByteStorage": "uint8",
    "torch BoolStorage": "bool",
}
_UNTYPED = ("torch UntypedStorage", "torch.storage UntypedStorage")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any, dtype: np.dtype | None = None) -> Any:
    """A tensor, once its numbers are found to lie in its storage."""
    if not isinstance(storage, Storage):
        raise Refused("a tensor has no storage")
    dtype = dtype or storage.dtype
    if dtype is None:
        raise Refused("a tensor has no type")
    if not isinstance(shape, tuple) or not isinstance(strides, tuple) or len(shape) != len(strides):
        raise Refused("a tensor has no shape")
    numbers = (offset, *shape, *strides)
    if any(type(number) is not int for number in numbers):
        raise Refused("a tensor has no shape")
    if len(shape) > MAX_DIMENSIONS or any(not 0 <= number < 1 << 62 for number in numbers):
        raise Refused(f"a tensor has the shape {str(shape)[:100]}, strides {str(strides)[:100]}, offset {offset}")
    items = storage.size if storage.dtype else storage.size // dtype.itemsize
    tensor = StridedTensor(storage, dtype, offset, shape, strides)
    if math.prod(shape) > items or (tensor.reach and offset + tensor.reach > items):
        raise Refused(f"a tensor of shape {shape} reaches beyond the {items:,} numbers it is a view of")
    return tensor


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> Any:
    if not isinstance(dtype, np.dtype):
        raise Refused("a tensor has no type")
    return _tensor(storage, offset, shape, strides, dtype=dtype)


def _first(value: Any, *rest: Any) -> Any:
    return value


def _from_type(function: Any, cls: Any, arguments: Any, *state: Any) -> Any:
    """A tensor whose class is a subclass, with attributes; both are left out."""
    if (
        not isinstance(function, Name)
        or not isinstance(arguments, tuple)
        or not function.name.startswith("torch._utils ")
    ):
        raise Refused("a tensor is made in an unknown way")
    return _call(function, arguments)


def _mapping(pairs: Any = (), *rest: Any) -> Any:
    """OrderedDict(), or of [key, value] pairs as Python 2 wrote it; defaultdict(factory) too."""
    if isinstance(pairs, dict):
        return dict(pairs)
    found: dict[Any, Any] = {}
    for pair in pairs if isinstance(pairs, list | tuple) else ():
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Refused("a mapping is made of other things than pairs")
        _set(found, *pair)
    return found


def _tuple(values: Any = (), *rest: Any) -> tuple:
    if not isinstance(values, list | tuple):
        raise Refused("a shape is no sequence")
    return tuple(values)


def _opaque(name: str) -> Callable[..., Opaque]:
    return lambda *arguments: Opaque(name)


# What a name means when the pickle calls it. What is not here cannot be called, made, or named.
_OPAQUE = (
    "_codecs encode",
    "__builtin__ set",
    "__builtin__ frozenset",
    "builtins set",
    "builtins frozenset",
    "builtins complex",
    "collections Counter",
    "datetime datetime",
    "datetime timedelta",
    "numpy dtype",
    "numpy.core.multiarray scalar",
    "numpy.core.multiarray _reconstruct",
    "numpy._core.multiarray scalar",
    "numpy._core.multiarray _reconstruct",
    "pathlib Path",
    "pathlib PosixPath",
    "pathlib WindowsPath",
    "pathlib PurePosixPath",
    "pathlib PureWindowsPath",
    "torch device",
    "torch.serialization _get_layout",
)
_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_tensor_v3": _tensor_v3,
    "torch._utils _rebuild_parameter": _first,
    "torch._utils _rebuild_parameter_with_state": _first,
    "torch._tensor _rebuild_from_type_v2": _from_type,
    "torch Size": _tuple,
    "torch.jit._pickle build_intlist": _first,
    "torch.jit._pickle build_doublelist": _first,
    "torch.jit._pickle build_boollist": _first,
    "torch.jit._pickle build_tensorlist": _first,
    "torch.jit._pickle restore_type_tag": _first,
    "collections OrderedDict": _mapping,
    "collections defaultdict": lambda *arguments: {},
    **{name: _opaque(name) for name in _OPAQUE},
}
# Made without arguments, then given attributes: they become plain mappings.
_CLASSES = {"argparse Namespace", "types SimpleNamespace"}
# Mentioned, as an argument or a type.
_MENTIONED = {
    *_STORAGES,
    *_UNTYPED,
    *(f"torch {dtype}" for dtype in DTYPES),
    "torch Tensor",
    "torch.nn.parameter Parameter",
    "torch.nn.parameter Buffer",
    "numpy ndarray",
    "builtins dict",
    "builtins list",
    "builtins int",
    "builtins float",
    "__builtin__ dict",
    "__builtin__ list",
    "__builtin__ int",
    "__builtin__ float",
}
_SCRIPTED = ("__torch__ ", "__torch__.")  # classes of TorchScript, and their modules


def _call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
        raise Refused("it calls something that is no function")
    if function.name in _CLASSES and not arguments:
        return Attributes()
    if function.name not in _CALLS:
        raise Refused(f"it calls {_dotted(function.name)}")
    try:
        return _CALLS[function.name](*arguments)
    except TypeError:
        raise Refused(f"it calls {_dotted(function.name)} with {len(arguments)} arguments") from None


def _dotted(name: str) -> str:
    return name.replace(" ", ".")[:200]


def _set(target: Any, key: Any, value: Any) -> None:
    """Keys are those of state dicts and their surroundings: words and small numbers (nothing with a costly hash)."""
    if not isinstance(target, dict):
        raise Refused("it sets items of something that is no mapping")
    if isinstance(key, str | bool | float) or key is None or (type(key) is int and abs(key) < 1 << 63):
        target[key] = value
    elif isinstance(key, tuple | bytes | Opaque):
        target[f"({len(target)})"] = value  # nothing in a file of weights hangs on such a key
    else:
        raise Refused("it has a mapping whose keys are objects")


class _Mark:
    """A place on the stack."""


_MARK = _Mark()


class _Machine:
    """The stack and memo of one pickle; methods are named after the opcodes."""

    def __init__(self, storage: Callable[[tuple], Storage], scripted: bool):
        self._storage = storage
        self._scripted = scripted
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, opcodes: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]) -> Any:
        for count, (opcode, argument, _) in enumerate(opcodes):
            if count >= MAX_OPCODES:
                raise Refused(f"it takes more than {MAX_OPCODES:,} steps")
            if opcode.name in _LITERALS:
                self._stack.append(argument)
            elif opcode.name in _CONSTANTS:
                self._stack.append(_CONSTANTS[opcode.name]())
            elif opcode.name in _STEPS:
                _STEPS[opcode.name](self, argument)
            else:
                raise Refused(f"it holds the instruction {opcode.name}, which no file of weights needs")
        if len(self._stack) != 1:
            raise Refused("it does not end in one object")
        return self._stack[0]

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise Refused("its stack is in disorder")
        return value

    def _top(self) -> Any:
        if self._stack[-1] is _MARK:
            raise Refused("its stack is in disorder")
        return self._stack[-1]

    def _since_mark(self) -> list[Any]:
        values = []
        while (value := self._stack.pop()) is not _MARK:
            values.append(value)
        values.reverse()
        return values

    def proto(self, version: int) -> None:
        if not 2 <= version <= 5:
            raise Refused(f"it is of protocol {version}")

    def ignore(self, argument: Any) -> None:
        pass

    def mark(self, argument: Any) -> None:
        self._stack.append(_MARK)

    def put(self, index: int) -> None:
        self._memo[index] = self._top()

    def memoize(self, argument: Any) -> None:
        self._memo[len(self._memo)] = self._top()

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise Refused("it uses what it never made")
        self._stack.append(self._memo[index])

    def number(self, value: int) -> None:
        if abs(value) >= 1 << 128:
            raise Refused("it holds a number of more than 128 bits")
        self._stack.append(value)

    def tuple(self, argument: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def tuple_of(length: int) -> Callable[["_Machine", Any], None]:
        def step(self: "_Machine", argument: Any) -> None:
            values = [self._pop() for _ in range(length)]
            self._stack.append(tuple(reversed(values)))

        return step

    def list(self, argument: Any) -> None:
        self._stack.append(self._since_mark())

    def dict(self, argument: Any) -> None:
        values = self._since_mark()
        self._stack.append({})
        self._set_all(values)

    def append(self, argument: Any) -> None:
        self._extend([self._pop()])

    def appends(self, argument: Any) -> None:
        self._extend(self._since_mark())

    def _extend(self, values: Any) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Opaque):
            raise Refused("it appends to something that is no list")

    def setitem(self, argument: Any) -> None:
        value, key = self._pop(), self._pop()
        _set(self._top(), key, value)

    def setitems(self, argument: Any) -> None:
        self._set_all(self._since_mark())

    def _set_all(self, values: Any) -> None:
        if len(values) % 2:
            raise Refused("a key has no value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            _set(self._top(), key, value)

    def name(self, name: str) -> None:
        known = name in _CALLS or name in _CLASSES or name in _MENTIONED
        if not known and not (self._scripted and name.startswith(_SCRIPTED)):
            raise Refused(f"it names {_dotted(name)}")
        dtype = DTYPES.get(name.removeprefix("torch ")) if name.startswith("torch ") else None
        self._stack.append(dtype if dtype is not None else Name(name))

    def stack_name(self, argument: Any) -> None:
        attribute, module = self._pop(), self._pop()
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise Refused("it names something without a name")
        self.name(f"{module} {attribute}")

    def reduce(self, argument: Any) -> None:
        arguments, function = self._pop(), self._pop()
        self._stack.append(_call(function, arguments))

    def newobj(self, argument: Any) -> None:
        arguments, cls = self._pop(), self._pop()
        if isinstance(cls, Name) and cls.name.startswith(_SCRIPTED) and arguments == ():
            self._stack.append(Attributes())
        else:
            self._stack.append(_call(cls, arguments))

    def build(self, argument: Any) -> None:
        """Gives an object its attributes; those of tensors, mappings and of what is opaque are left out."""
        state, target = self._pop(), self._top()
        if isinstance(target, Attributes):
            if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
                raise Refused("an object has attributes without names")
            target.update(state)
        elif not isinstance(target, Opaque | StridedTensor | dict):
            raise Refused("it gives attributes to something that has none")

    def persistent(self, argument: Any) -> None:
        identity = self._pop()
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
            raise Refused("it refers to something outside that is no storage")
        self._stack.append(self._storage(identity[1:]))


_LITERALS = {
    "BININT",
    "BININT1",
    "BININT2",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "BINSTRING",
    "SHORT_BINSTRING",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: Opaque("set"),
}
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.proto,
    "FRAME": _Machine.ignore,
    "STOP": _Machine.ignore,
    "MARK": _Machine.mark,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "LONG1": _Machine.number,
    "LONG4": _Machine.number,
    "TUPLE": _Machine.tuple,
    "TUPLE1": _Machine.tuple_of(1),
    "TUPLE2": _Machine.tuple_of(2),
    "TUPLE3": _Machine.tuple_of(3),
    "LIST": _Machine.list,
    "DICT": _Machine.dict,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "ADDITEMS": _Machine.appends,
    "SETITEM": _Machine.setitem,
    "SETITEMS": _Machine.setitems,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stack_name,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.newobj,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}


def interpret(stream: Any, storage: Callable[[tuple], Storage], *, scripted: bool = False) -> Any:
    """The object of the pickle that begins where `stream` stands; the stream is left behind it.

    Args:
        stream: a `BytesIO` of at most `MAX_PICKLE` bytes.
        storage: makes a Storage of (type, key, device, size, ...), or raises `Refused`.
        scripted: whether classes of TorchScript may be named; they become mappings of their attributes.

    Raises:
        Refused: it is damaged, or wants more than tensors.
    """
    try:
        return _Machine(storage, scripted).run(pickletools.genops(stream))
    except (ValueError, IndexError, struct.error, OverflowError) as error:
        raise Refused(f"it is damaged ({str(error)[:150]})") from None


def storage_dtype(kind: Any) -> np.dtype | None:
    """Of the storage type that a pickle names; None for the untyped one."""
    if isinstance(kind, Name) and kind.name in _STORAGES:
        return DTYPES[_STORAGES[kind.name]]
    if isinstance(kind, Name) and kind.name in _UNTYPED:
        return None
    raise Refused("a storage has an unknown type")


def flattened(value: Any, limit: int) -> dict[str, StridedTensor]:
    """The tensors in nested mappings and lists, by name.

    A mapping in a mapping is joined by "/": teacher/backbone.cls_token. An object's attributes are joined by ".", as
    in the state dict of the module it was.

    Args:
        value: what `interpret` gave.
        limit: of the mappings, lists and tensors on the way; the length of the pickle is above any that does not
            hold one thing very often.

    Raises:
        Refused: too deep, too many, or two of one name.
    """
    found: dict[str, StridedTensor] = {}
    visited = 0

    def visit(value: Any, name: str, depth: int) -> None:
        nonlocal visited
        visited += 1
        if len(name) > MAX_NAME:
            raise Refused(f"it holds a name of {len(name):,} letters")
        if depth > MAX_DEPTH or visited > limit:
            raise Refused(f"its mappings are nested {'too deeply' if depth > MAX_DEPTH else 'without end'}")
        if isinstance(value, StridedTensor):
            if name in found:
                raise Refused(f"two tensors are called {name[:100]!r}")
            if len(found) >= MAX_NAMES:
                raise Refused(f"it holds more than {MAX_NAMES:,} tensors")
            found[name] = value
            return
        if isinstance(value, Storage | Opaque | Name | str | bytes):
            return
        inside: Mapping[Any, Any] = {}
        if isinstance(value, dict):
            inside = value
        elif isinstance(value, list | tuple):
            inside = dict(enumerate(value))
        between = "." if isinstance(value, Attributes) else "/"
        for key, item in inside.items():
            if isinstance(item, StridedTensor | dict | list) or type(item) is tuple:
                visit(item, f"{name}{between}{key}" if name else str(key), depth + 1)

    visit(value, "", 0)
    return found
