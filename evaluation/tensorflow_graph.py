"""A frozen TensorFlow graph made readable for OpenCV, 4.12 and 5.0 alike.

OpenCV's DepthToSpace layer was made for ONNX: it asks for an attribute `blocksize`, gets TensorFlow's `block_size`, and
gives up. So the attribute is renamed in the file's bytes (protobuf) before OpenCV sees them.
"""

from collections.abc import Iterator

NODE, OPERATION, ATTRIBUTE, KEY = 1, 2, 5, 1  # field numbers of GraphDef.node, NodeDef.op, NodeDef.attr, its map's key
VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5  # wire types


def rename_block_size(graph: bytes) -> bytes:
    """The graph with `block_size` of every DepthToSpace named `blocksize`. Raises ValueError when it is no protobuf."""
    return b"".join(
        encode(NODE, rename_in_node(value)) if number == NODE and isinstance(value, bytes) else raw
        for number, value, raw in fields(graph)
    )


def rename_in_node(node: bytes) -> bytes:
    parts = list(fields(node))
    if (OPERATION, b"DepthToSpace") not in [(number, value) for number, value, _ in parts]:
        return node
    return b"".join(
        encode(ATTRIBUTE, rename_key(value)) if number == ATTRIBUTE and isinstance(value, bytes) else raw
        for number, value, raw in parts
    )


def rename_key(entry: bytes) -> bytes:
    return b"".join(
        encode(KEY, b"blocksize") if (number, value) == (KEY, b"block_size") else raw
        for number, value, raw in fields(entry)
    )


def fields(message: bytes) -> Iterator[tuple[int, bytes | int, bytes]]:
    """(field number, value, the field's own bytes) of a protobuf message, in order."""
    place = 0
    while place < len(message):
        start = place
        tag, place = varint(message, place)
        value: bytes | int
        if tag & 7 == VARINT:
            value, place = varint(message, place)
        elif tag & 7 in (BYTES, FIXED_32, FIXED_64):
            length, place = varint(message, place) if tag & 7 == BYTES else (4 if tag & 7 == FIXED_32 else 8, place)
            value, place = message[place : place + length], place + length
        else:
            raise ValueError("not a frozen TensorFlow graph")
        if place > len(message):
            raise ValueError("not a frozen TensorFlow graph, or cut off")
        yield tag >> 3, value, message[start:place]


def varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(message):
        byte = message[place]
        place, value, shift = place + 1, value | (byte & 127) << shift, shift + 7
        if byte < 128:
            return value, place
    raise ValueError("not a frozen TensorFlow graph, or cut off")


def encode(number: int, value: bytes) -> bytes:
    """One field of bytes."""
    length, head = len(value), bytearray([number << 3 | BYTES])
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    return bytes([*head, length]) + value
