"""Where tensors can hide in an ONNX model, read from the format's own schema so that no place is forgotten.

Tensors lie in a graph's initializers, but also in attributes of nodes, in the graphs that are attributes of ``If`` and
``Loop``, in functions, in sparse initializers and in training data. Each of them may refer to another file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING

from onnx import ModelProto, TensorProto

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

# Full name of a message → its fields that lead to tensors, by number, each with the message it holds.
Layout = Mapping[str, Mapping[int, "Descriptor"]]

MODEL = ModelProto.DESCRIPTOR
TENSOR = TensorProto.DESCRIPTOR


@cache
def layout() -> Layout:
    """Return the fields that lead from a model to its tensors, for every message on the way."""
    messages = _reachable()
    leading = {TENSOR.full_name}
    while found := {name for name, children in messages.items() if name not in leading and _meets(children, leading)}:
        leading |= found
    return {
        name: {number: child for number, child in messages[name].items() if child.full_name in leading}
        for name in leading
    }


def walk(root: Message) -> Iterator[Message]:
    """Yield ``root`` and every message below it that is a tensor or can hold one, in an order that never changes."""
    table = layout()
    pending = [root]
    while pending:
        message = pending.pop()
        yield message
        children = table[message.DESCRIPTOR.full_name]
        for field, value in message.ListFields():
            if field.number in children:
                pending.extend(value if field.is_repeated else (value,))


def _reachable() -> dict[str, dict[int, Descriptor]]:
    found: dict[str, dict[int, Descriptor]] = {}
    pending = [MODEL]
    while pending:
        message = pending.pop()
        if message.full_name not in found:
            children = {field.number: field.message_type for field in message.fields if field.message_type}
            found[message.full_name] = children
            pending.extend(children.values())
    return found


def _meets(children: Mapping[int, Descriptor], names: set[str]) -> bool:
    return any(child.full_name in names for child in children.values())
