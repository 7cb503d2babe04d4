"""Models in ONNX files, with their weights inside or in files beside them."""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, ValueInfoProto, numpy_helper

from mixpeek_ray.core.errors import FormatMismatchError, InvalidWeightsError
from mixpeek_ray.core.records import FileInfo, ModelFormat, ModelKind, TensorSignature
from mixpeek_ray.formats.base import Companion, OpenedModel
from mixpeek_ray.formats.onnx_files import GRAPH_FILE
from mixpeek_ray.formats.onnx_layout import walk
from mixpeek_ray.formats.onnx_tensors import (
    ExternalFiles,
    TensorBytes,
    check_inline,
    check_no_overlap,
    dtype_name,
    tensor_type,
)
from mixpeek_ray.formats.onnx_trial import check_operators, check_session
from mixpeek_ray.formats.onnx_wire import detach_tensors
from mixpeek_ray.formats.packed import dtype_table
from mixpeek_ray.formats.tensors import MAX_TENSORS, shown

if TYPE_CHECKING:
    import torch

_EXTENSION = ".onnx"
# Decoders with a cache of 100 layers have 400; every one is part of the model's public description.
_MAX_VALUES = 4_096
_MAX_NAME_CHARACTERS = 1_024
_MAX_NAMED = 5


class OnnxFormat:
    """One ``.onnx`` file, with whatever files its tensors refer to."""

    model_format = ModelFormat.ONNX

    def open(self, folder: Path, files: Sequence[FileInfo]) -> OpenedModel:
        """Check the model and return its initializers, and all larger tensors, as copy-on-write views of its files.

        Tensors of types smaller than a byte, which torch has not, come as the bytes they are packed in. The companion
        ``GRAPH_FILE`` is the model whose larger tensors are external, named by location. Raises ``FormatMismatchError``
        unless there is exactly one ``.onnx`` file, ``UnsafeExternalDataError`` and ``InvalidWeightsError``.
        """
        path = find_model(files)
        model = _parse(folder / path)
        external = _check_tensors(model, ExternalFiles(folder, files, path))
        check_operators(model)
        inputs, outputs = _signature(model)
        # Before anything is mapped here: the session's mapping of the same weights counts against the same limit.
        check_session(model.SerializeToString(), (folder / path).parent)
        tensors = _pack_list(model, external, folder)
        return OpenedModel(
            kind=ModelKind.ONNX,
            tensors=tensors,
            companions=(Companion(path=GRAPH_FILE, content=model.SerializeToString()),),
            inputs=inputs,
            outputs=outputs,
        )


def find_model(files: Sequence[FileInfo]) -> str:
    """Return the path of the archive's ``.onnx`` file. Raises ``FormatMismatchError`` unless there is exactly one."""
    # macOS tar stores a file's extended attributes beside it as `._<name>` (AppleDouble), with the same ending.
    names = [PurePosixPath(file.path) for file in files]
    models = [str(name) for name in names if name.suffix.lower() == _EXTENSION and not name.name.startswith("._")]
    if len(models) == 1:
        return models[0]
    found = models or [file.path for file in files]
    listed = ", ".join(shown(path) for path in found[:_MAX_NAMED]) + (" and more" if len(found) > _MAX_NAMED else "")
    raise FormatMismatchError(
        f"{len(models) or 'No'} {_EXTENSION} files were found ({listed or 'the archive holds no file'}): an "
        "archive with model_format=onnx must hold exactly one, beside the files that it refers to."
    )


def _parse(path: Path) -> ModelProto:
    if path.stat().st_size == 0:
        raise InvalidWeightsError("The ONNX file is empty: export the model again.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        thin = detach_tensors(mapped, path.name)
    model = ModelProto()
    try:
        model.ParseFromString(thin)
    except DecodeError:
        raise InvalidWeightsError("The file is not ONNX: export the model again.") from None
    # What this reader does not know, onnxruntime might: only what was checked is kept.
    model.DiscardUnknownFields()
    if not model.HasField("graph"):
        raise InvalidWeightsError("The file is not ONNX, or its model has no graph: export the model again.")
    return model


def _check_tensors(model: ModelProto, external: ExternalFiles) -> list[tuple[TensorProto, TensorBytes]]:
    """Return every tensor that lies outside the graph, with where it lies."""
    found = []
    for tensor in walk(model):
        if not isinstance(tensor, TensorProto):
            continue
        if tensor.data_location == TensorProto.EXTERNAL:
            found.append((tensor, external.locate(tensor)))
        elif tensor.external_data:
            raise InvalidWeightsError(f"The tensor {shown(tensor.name)} refers to a file and says it does not.")
        else:
            check_inline(tensor)
    check_no_overlap([place for _, place in found])
    if len(found) + len(model.graph.initializer) > MAX_TENSORS:
        raise InvalidWeightsError(f"The model has more than the {MAX_TENSORS} tensors allowed: merge some of them.")
    return found


def _name_tensors(
    model: ModelProto, external: Iterable[tuple[TensorProto, TensorBytes]]
) -> Iterator[tuple[str, TensorProto, TensorBytes | None]]:
    """Yield each tensor to pack with a name of its own: initializers, and external tensors wherever they are."""
    names = {initializer.name for initializer in model.graph.initializer}
    if len(names) != len(model.graph.initializer) or any(len(name) > _MAX_NAME_CHARACTERS for name in names):
        raise InvalidWeightsError(
            f"The model's initializers do not each have a name of up to {_MAX_NAME_CHARACTERS} characters of their own."
        )
    # The runtime hands out one object a message for as long as it is held: identity tells which are initializers.
    places = {id(tensor): (tensor, place) for tensor, place in external}
    for initializer in model.graph.initializer:
        _, place = places.pop(id(initializer), (None, None))
        yield initializer.name, initializer, place
    for number, (tensor, place) in enumerate(places.values()):
        # A tensor elsewhere may have no name, or someone else's.
        name = f"{tensor.name[: _MAX_NAME_CHARACTERS // 2]}#{number}"
        while name in names:
            name += "#"
        names.add(name)
        yield name, tensor, place


def _pack_list(
    model: ModelProto, external: Iterable[tuple[TensorProto, TensorBytes]], folder: Path
) -> OrderedDict[str, torch.Tensor]:
    """Return the tensors to pack, and make each external one's location in ``model`` its name there."""
    views: OrderedDict[str, torch.Tensor] = OrderedDict()
    mapped: dict[str, mmap.mmap] = {}
    for name, tensor, place in _name_tensors(model, external):
        if place is not None:
            views[name] = _view(place, folder, mapped)
            del tensor.external_data[:]
            tensor.external_data.add(key="location", value=name)
        elif tensor.data_type != TensorProto.STRING:
            # Also part of the graph: packed as well, so that the model's description counts it.
            views[name] = _copy(tensor)
    return views


def _view(place: TensorBytes, folder: Path, mapped: dict[str, mmap.mmap]) -> torch.Tensor:
    import torch

    dtype = dtype_table()[place.dtype]
    if place.size == 0:
        return torch.empty(place.shape, dtype=dtype)
    if place.path not in mapped:
        with (folder / place.path).open("rb") as file:
            mapped[place.path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    count = place.size // dtype.itemsize
    flat = torch.frombuffer(mapped[place.path], dtype=dtype, count=count, offset=place.offset)
    return flat.view(place.shape)


def _copy(tensor: TensorProto) -> torch.Tensor:
    import torch

    _, dtype_name = tensor_type(tensor)
    raw = tensor.raw_data if tensor.HasField("raw_data") else numpy_helper.to_array(tensor).tobytes()
    dtype = dtype_table()[dtype_name or "uint8"]
    shape = tuple(tensor.dims) if dtype_name is not None else (len(raw),)
    return torch.frombuffer(bytearray(raw), dtype=dtype).view(shape) if raw else torch.empty(shape, dtype=dtype)


def _signature(model: ModelProto) -> tuple[tuple[TensorSignature, ...], tuple[TensorSignature, ...]]:
    # Models from before IR version 4 list their initializers as inputs too.
    held = {tensor.name for tensor in model.graph.initializer}
    held.update(sparse.values.name for sparse in model.graph.sparse_initializer)
    inputs = [value for value in model.graph.input if value.name not in held]
    if len(inputs) + len(model.graph.output) > _MAX_VALUES:
        raise InvalidWeightsError(f"The model has more than {_MAX_VALUES} inputs and outputs.")
    return tuple(map(_describe, inputs)), tuple(map(_describe, model.graph.output))


def _describe(value: ValueInfoProto) -> TensorSignature:
    """Return a value's name, type and axes; a value that is no tensor has the kind of its type, and no axes."""
    kind = value.type.WhichOneof("value") or "tensor_type"
    if kind != "tensor_type":
        return TensorSignature(name=_bounded(value.name), dtype=kind.removesuffix("_type"), shape=())
    tensor = value.type.tensor_type
    axes = tuple(
        axis.dim_value if axis.HasField("dim_value") else _bounded(axis.dim_param) or None for axis in tensor.shape.dim
    )
    return TensorSignature(name=_bounded(value.name), dtype=dtype_name(tensor.elem_type), shape=axes)


def _bounded(name: str) -> str:
    if len(name) > _MAX_NAME_CHARACTERS:
        raise InvalidWeightsError(f"A name in the model's signature has over {_MAX_NAME_CHARACTERS} characters.")
    return name
