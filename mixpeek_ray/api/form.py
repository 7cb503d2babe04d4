"""The text fields of an upload, checked as they come."""

from __future__ import annotations

from mixpeek_ray.core import limits
from mixpeek_ray.core.errors import InvalidMultipartError, InvalidResourcesError, ValidationError
from mixpeek_ray.core.ids import check_name, check_version
from mixpeek_ray.core.records import ModelFormat, ResourceRequest, UploadForm

_REQUIRED = ("name", "version", "model_format")
_LABELS = ("framework", "task_type")
# A label such as "sentence-similarity"; it is shown in lists.
MAX_LABEL_CHARS = 64
# What each resource is when the form does not say.
_RESOURCES = {
    "num_cpus": limits.DEFAULT_CPUS,
    "num_gpus": 0.0,
    "memory_gb": limits.DEFAULT_MEMORY_BYTES / limits.GIB,
}


class UploadFormBuilder:
    """Collects fields in any order into an ``UploadForm``; fields it does not know are ignored."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._numbers = dict(_RESOURCES)

    def add(self, name: str, value: str) -> None:
        """Take one field. Raises the ``ValidationError`` that its value deserves, at once: a file may still follow."""
        if name not in _REQUIRED and name not in _LABELS and name not in _RESOURCES:
            return
        if name in self._texts:
            raise InvalidMultipartError(f"The form has the field '{name}' twice.")
        self._texts[name] = value
        match name:
            case "name":
                check_name(value)
            case "version":
                check_version(value)
            case "model_format":
                ModelFormat.parse(value)
            case "framework" | "task_type":
                _check_label(name, value)
            case _:
                self._numbers[name] = _number(name, value)
                self._resources()

    def build(self) -> UploadForm:
        """Return the whole form. Raises ``ValidationError`` naming each field that never came."""
        missing = [name for name in _REQUIRED if name not in self._texts]
        if missing:
            raise ValidationError(
                f"The form lacks {', '.join(missing)}.",
                validation_errors=[
                    {"loc": ["body", name], "msg": "Field required", "type": "missing"} for name in missing
                ],
            )
        return UploadForm(
            name=self._texts["name"],
            version=self._texts["version"],
            model_format=ModelFormat.parse(self._texts["model_format"]),
            framework=self._texts.get("framework") or None,
            task_type=self._texts.get("task_type") or None,
            resources=self._resources(),
        )

    def _resources(self) -> ResourceRequest:
        return ResourceRequest.from_gigabytes(
            num_cpus=self._numbers["num_cpus"],
            num_gpus=self._numbers["num_gpus"],
            memory_gb=self._numbers["memory_gb"],
        )


def _check_label(name: str, value: str) -> None:
    if len(value) > MAX_LABEL_CHARS or not value.isprintable():
        raise ValidationError(
            f"{value[:80]!a} is no {name}: use at most {MAX_LABEL_CHARS} printable characters.", field=name
        )


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise InvalidResourcesError(f"{name} must be a number, not {value[:80]!a}.", field=name) from None
