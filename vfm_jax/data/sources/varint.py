"""Whole numbers of as many bytes as they need, low bits first: those of protobuf, Thrift and parquet's runs."""


def read_varint(content: bytes | memoryview, place: int) -> tuple[int, int]:
    """The number at a place, and the place behind it.

    Raises:
        ValueError: the bytes end before the number does, or it has more than ten.
    """
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(content):
            raise ValueError("it is cut off")
        byte = content[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("a number of more than ten bytes")
