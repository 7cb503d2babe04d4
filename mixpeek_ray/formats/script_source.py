"""The source text in a TorchScript archive, held to operators that compute: none that reads files or calls out.

Loading a TorchScript file runs its ``__setstate__`` methods, and TorchScript has operators that read and write files
(``aten::from_file``, ``aten::save``), so the text is judged before anything is loaded. It is read token by token: a
syntax tree would take 180 times the text's memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NoReturn

from mixpeek_ray.core.errors import InvalidWeightsError, UnsafePickleError
from mixpeek_ray.core.limits import MIB
from mixpeek_ray.formats.tensors import shown

# A traced BERT-large has 0.25 MB; this many bytes take 2 s to check.
MAX_SOURCE_BYTES = 2 * MIB

# What TorchScript's own lexer knows and its printer writes; no comment, line continuation or `\"""` string among it.
_TOKEN = re.compile(
    r"(?P<space>[ \n]+)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<text>\"(?:[^\"\\\n]++|\\[^\n])*+\"(?!\")|'(?:[^'\\\n]++|\\[^\n])*+'(?!'))"
    r"|(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?j?(?![A-Za-z0-9_.]))"
    r"|(?P<sign>->|//|\*\*|<<|>>|[-+*/%=!<>]=|[-+*/%@&|^~=<>()\[\]{},:.])"
)
# These reach outside of the process whatever they are called on: `x.save("file")` is aten::save(x, "file").
_DENIED = frozenset({"from_file", "save", "to_here", "dist_backward", "rpc_async", "rpc_sync", "rpc_remote"})
# `ops.<namespace>.<operator>`; others are distributed, quantized (their weights are no plain tensors) or extensions.
_NAMESPACES = frozenset({"aten", "prim", "profiler"})
# The rest of prim is what the compiler uses inside: it trusts its arguments.
_PRIM = re.compile(
    r"abs|awaitable_(nowait|wait)|data|device|dtype|grad|id|index|is_\w+|itemsize|layout|max|min|name|nbytes"
    r"|rangelist|requires_grad|tolist|type|NumToTensor|RaiseException|Enum(Name|Value)|unchecked_unwrap_optional"
    r"|ModuleContainerIndex|TimePoint|TupleIndex|StringIndex|Print|Uninitialized|unchecked_cast"
)
_CLASSES = ["__torch__", "torch", "classes"]
# The one escape with which a text could spell a name differently; TorchScript knows no other.
_OCTAL = re.compile(r"\\([0-7]{1,3})")


def check_source(name: str, text: str) -> None:
    """Return if the text of the file ``name`` uses nothing but operators that compute.

    Raises ``UnsafePickleError``, naming the operator, and ``InvalidWeightsError`` for text that TorchScript's printer
    does not write.
    """
    for chain in _dotted_names(name, text):
        _check_chain(chain)


def _dotted_names(name: str, text: str) -> Iterator[list[str]]:
    """Yield every dotted name, as long as it goes on; after an expression the first part is empty."""
    reads_attributes_by_text = "getattr" in text
    chain: list[str] = []
    after_dot = False
    for kind, lexeme in _tokens(name, text):
        if kind == "name" and after_dot:
            chain = chain or [""]
            chain.append(lexeme)
        elif kind == "name" or lexeme != "." or after_dot:
            if chain:
                yield chain
            chain = [lexeme] if kind == "name" else []
        if kind == "text" and reads_attributes_by_text:
            yield ["", _OCTAL.sub(lambda code: chr(int(code[1], 8)), lexeme[1:-1])]
        after_dot = lexeme == "."
    if chain:
        yield chain


def _tokens(name: str, text: str) -> Iterator[tuple[str, str]]:
    end = 0
    for match in _TOKEN.finditer(text):
        if match.start() != end:
            break
        end = match.end()
        if match.lastgroup != "space":
            yield match.lastgroup or "", match.group()
    if end != len(text):
        raise InvalidWeightsError(
            f"The TorchScript file cannot be used: {shown(name)} holds {shown(text[end : end + 20])}, which "
            "torch.jit.save does not write."
        )


def _check_chain(chain: list[str]) -> None:
    denied = next((part for part in chain if part in _DENIED), None)
    if denied is not None and (len(chain) > 1 or denied.startswith("rpc_")):
        _refuse(denied)
    match chain:
        case ["ops", "prim", operator, *_]:
            if _PRIM.fullmatch(operator) is None:
                _refuse(f"prim::{operator}")
        case ["ops", *rest]:
            if len(rest) < 2 or rest[0] not in _NAMESPACES:
                _refuse("::".join(rest[:2]) or "ops")
        # Cut short, a name could be completed elsewhere.
        case ["__torch__", *_] if chain[:3] == _CLASSES or chain == _CLASSES[: len(chain)]:
            _refuse(".".join(chain))


def _refuse(operator: str) -> NoReturn:
    raise UnsafePickleError(
        f"The TorchScript program uses {shown(operator)}: operators that read or write files, reach the network, are "
        "quantized or come with an extension are not allowed. Upload model.state_dict() or ONNX instead."
    )
