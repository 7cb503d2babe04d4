"""Structured logs: one JSON object a line, with ids and never a key, a weight or a user's text."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from mixpeek_ray.core.settings import get_settings

request_id_var: ContextVar[str | None] = ContextVar("request_id", default=None)

# Only these may accompany a message: ids and figures. A free-form extra could carry what a user sent.
_FIELDS = (
    "request_id", "organization_id", "namespace_id", "model_id", "key_id", "method", "route", "status",
    "duration_ms", "size_bytes", "error_code", "attempt",
)  # fmt: skip


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        request_id = request_id_var.get()
        if request_id is not None:
            line["request_id"] = request_id
        line.update({name: getattr(record, name) for name in _FIELDS if hasattr(record, name)})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def get_logger(name: str) -> logging.Logger:
    """Return the logger ``name`` below ``mixpeek_ray``, which writes JSON lines to standard error."""
    root = logging.getLogger("mixpeek_ray")
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_JsonFormatter())
        root.addHandler(handler)
        root.setLevel(get_settings().log_level.upper())
        root.propagate = False
    return logging.getLogger(name if name.startswith("mixpeek_ray") else f"mixpeek_ray.{name}")
