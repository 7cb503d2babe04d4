"""Starts HAProxy for Ray Serve with a configuration made safe for a public port.

Serve writes a configuration and runs ``$RAY_SERVE_HAPROXY_BINARY_PATH -db -f <config> …`` at every reload; the run
command points that variable at a script that runs this file. It rewrites the configuration in place and becomes
HAProxy, so the process id and the command line are what Serve expects. Standard library only: it runs at every reload.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
from pathlib import Path

# A client has this long to send its headers; bodies have the application's own idle limit.
HEADER_TIMEOUT_S = 10
KEEP_ALIVE_TIMEOUT_S = 90
# While no replica is up, Serve's Python proxy takes over and holds whole bodies in memory: only small ones may wait.
MAX_FALLBACK_BODY_BYTES = 1024 * 1024
# A model family without replicas is started by the request that waits for it, so that one may be as large as any; the
# number of them bounds the memory instead: the rest wait in HAProxy, unread.
MAX_FALLBACK_INFERENCE_BODY_BYTES = 16 * 1024 * 1024
MAX_FALLBACK_INFERENCE_REQUESTS = 32

_RETRY_AFTER_S = 2
_PR_SET_PDEATHSIG = 1
_PUBLIC_FRONTEND = "frontend http_frontend"
# Answers while no application has been routed yet; the gateway takes every path.
_UNROUTED = "backend default_backend"
# Takes uploads; every other application computes.
_GATEWAY = "backend http-gateway"
_REPLACED = ("errorfile ", "timeout http-keep-alive ", "timeout http-request ")
_ERROR_PAGES = {
    400: ("BadRequestError", "bad_request", "The request is not HTTP: check the client.", "Bad Request"),
    408: ("BadRequestError", "request_timeout", "The request headers took too long: send them at once.", "Timeout"),
    503: (
        "InferenceServiceUnavailableError",
        "service_unavailable",
        "No server is ready to answer: try again shortly.",
        "Service Unavailable",
    ),
}


def harden(config: str, *, public_bind: str, error_dir: Path) -> str:
    """Return Serve's HAProxy configuration with loopback admin ports, header limits and JSON error pages.

    ``public_bind`` is ``host:port`` of the one public listener. Raises ``ValueError`` if there is none to bind.
    """
    lines: list[str] = []
    section = ""
    rewritten = False
    for line in config.splitlines():
        if line and not line[0].isspace():
            section = line.strip()
        if section == _PUBLIC_FRONTEND and line.strip().startswith("bind "):
            line, rewritten = f"    bind {public_bind}", True
        elif line.strip().startswith(_REPLACED) or (section == _UNROUTED and line.strip() != section):
            continue
        else:
            line = re.sub(r"^(\s*)bind (?:\*)?:(\d+)$", r"\1bind 127.0.0.1:\2", line)
        lines.append(line)
        if line == "defaults":
            lines += _defaults(error_dir)
        if line == _UNROUTED:
            lines.append(_unavailable())
    if not rewritten:
        raise ValueError(f"Serve's HAProxy configuration has no `bind` in `{_PUBLIC_FRONTEND}`.")
    return "\n".join(_limit_fallbacks(lines)) + "\n"


def write_error_pages(directory: Path) -> None:
    """Write HAProxy's own answers as the platform's error envelope."""
    for status, (error_type, code, message, reason) in _ERROR_PAGES.items():
        error = {"type": error_type, "code": code, "message": message, "details": None}
        body = json.dumps({"success": False, "status": status, "error": error})
        retry = f"Retry-After: {_RETRY_AFTER_S}\r\n" if status == 503 else ""
        head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\n{retry}Connection: close\r\n"
        page = f"{head}Content-Length: {len(body)}\r\n\r\n{body}"
        (directory / f"{status}.http").write_text(page, newline="")


def _defaults(error_dir: Path) -> list[str]:
    # HAProxy's codes for a failed or late replica; clients see one retryable answer for all of them.
    pages = {400: 400, 408: 408, 502: 503, 503: 503, 504: 503}
    return [
        f"    timeout http-request {HEADER_TIMEOUT_S}s",
        f"    timeout http-keep-alive {KEEP_ALIVE_TIMEOUT_S}s",
        *(f"    errorfile {status} {error_dir / f'{page}.http'}" for status, page in pages.items()),
    ]


def _unavailable(condition: str = "") -> str:
    # `deny` answers with the error page of its status.
    return f"    http-request deny deny_status 503{condition}"


def _limit_fallbacks(lines: list[str]) -> list[str]:
    result: list[str] = []
    start = 0
    for end in [*(i for i, line in enumerate(lines) if line and not line[0].isspace()), len(lines)]:
        result += _limit_fallback(lines[start:end])
        start = end
    return result


def _limit_fallback(section: list[str]) -> list[str]:
    servers = [line.split() for line in section if line.strip().startswith("server ")]
    if not section or not section[0].startswith("backend ") or not any("backup" in words for words in servers):
        return section
    backend = section[0].split()[1]
    limit_bytes, lines = MAX_FALLBACK_BODY_BYTES, section[1:]
    if section[0] != _GATEWAY:
        limit_bytes = MAX_FALLBACK_INFERENCE_BODY_BYTES
        lines = [
            f"{line} maxconn {MAX_FALLBACK_INFERENCE_REQUESTS}" if line.endswith(" backup") else line for line in lines
        ]
    up = [f"    acl replica_up srv_is_up({backend}/{words[1]})" for words in servers if "backup" not in words]
    return [
        section[0],
        *(up or ["    acl replica_up always_false"]),
        _unavailable(f" if !replica_up {{ req.hdr_val(content-length) gt {limit_bytes} }}"),
        _unavailable(" if !replica_up { req.hdr(transfer-encoding) -m found }"),
        *lines,
    ]


def _die_with_parent(parent: int) -> None:
    # Serve's manager restarts HAProxy when it comes back itself; an orphan would keep the port from it.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def main(argv: list[str]) -> None:
    """Harden the configuration named in ``argv`` (public bind, HAProxy, its arguments) and become HAProxy."""
    public_bind, binary, *arguments = argv
    config = Path(arguments[arguments.index("-f") + 1])
    write_error_pages(config.parent)
    config.write_text(harden(config.read_text(), public_bind=public_bind, error_dir=config.parent))
    _die_with_parent(os.getppid())
    os.execv(binary, [binary, *arguments])  # noqa: S606  # becoming HAProxy is the point


if __name__ == "__main__":
    main(sys.argv[1:])
