"""Uploading a 1 GiB archive through the running platform, beside a bare PUT to disk on the same ingress.

    python -m benchmarks.upload [--mebibytes 1024]

A platform of its own, as `mixpeek-ray up` starts it; the same client (`curl -T`) sends a file from a warm page cache to
both in turn: the archive to one, the ready-made form with the archive in it to the other. The bare PUT
(`benchmarks/raw_put.py`) is a second Serve application of the same cluster: it writes what arrives and syncs it, as the
platform does, but parses, hashes and checks nothing. Archives above MIXPEEK_CHECK_ON_UPLOAD_MAX_BYTES (128 MiB) are
checked at their first deploy, so no check of the weights is part of these figures.

Memory is the anonymous memory of HAProxy, the gateway's replica, the registry and the inspector together, sampled while
archives are on their way, over what they held after a first upload of 1 MiB. The times of one upload are taken apart
from that, since sampling takes processor time from whatever it watches.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.local_platform import Platform, behind_haproxy, curl
from benchmarks.raw_put import FILE_NAME, ROUTE
from benchmarks.report import MB, Claim, conclude, median, print_table
from mixpeek_ray.cli.paths import RunPaths
from mixpeek_ray.cli.processes import descendants
from mixpeek_ray.cli.state import read_state
from mixpeek_ray.core.limits import MIB

RUNS = 5
BOUNDARY = "benchmark-boundary"
FORM_NAME = "ready-made"
AT_ONCE = 4
TENSORS = 64
SAMPLE_S = 0.05
# Parts of command lines.
SERVER_PROCESSES = (b"haproxy\0-db", b"ray::ServeReplica:gateway", b"ray::ModelRegistry", b"ray::ArchiveInspector")


class MemoryWatch:
    """Watches the anonymous memory of the platform's server processes from the moment it is made."""

    def __init__(self, platform: Platform) -> None:
        state = read_state(RunPaths.of(platform.home))
        assert state is not None
        self._root_pid = state.pid
        self._before = self._anonymous()
        self._peaks: list[int] = []
        self._over = threading.Event()

    def __enter__(self) -> MemoryWatch:
        self._over.clear()
        self._peaks.append(0)
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        """The most that was held during the latest watch beyond what was held at first, in bytes."""
        return self._peaks[-1] - self._before

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self._peaks[-1] = max(self._peaks[-1], self._anonymous())

    def _anonymous(self) -> int:
        return sum(anonymous_bytes(process.pid) for process in descendants(self._root_pid))


def anonymous_bytes(pid: int) -> int:
    """Return the anonymous memory of a server process in bytes; 0 for any other process and for one that ended."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if not any(part in command for part in SERVER_PROCESSES):
            return 0
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


def make_archive(folder: Path, size_bytes: int) -> Path:
    """Return a .tar.gz of random fp32 weights in a folder that is made; stored, since they hardly compress."""
    folder.mkdir()
    weights_file, archive = folder / "model.safetensors", folder / "model.tar.gz"
    rows = size_bytes // TENSORS // 4 // 1024
    save_file({f"layer.{i}.weight": torch.randn(rows, 1024) for i in range(TENSORS)}, weights_file)
    with tarfile.open(archive, "w:gz", compresslevel=0) as tar:
        tar.add(weights_file, weights_file.name)
    weights_file.unlink()
    assert archive.stat().st_size >= size_bytes
    return archive


def write_form(archive: Path) -> Path:
    """Return a file with the whole body of an upload of the archive, beside it."""
    form = archive.with_suffix(".form")
    part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n'
    fields = {"name": FORM_NAME, "version": "1.0.0", "model_format": "safetensors"}
    with form.open("wb") as body, archive.open("rb") as content:
        for name, value in fields.items():
            body.write((part % (name, "") + value + "\r\n").encode())
        body.write((part % ("file", '; filename="model.tar.gz"')).encode())
        shutil.copyfileobj(content, body, 4 * MIB)
        body.write(f"\r\n--{BOUNDARY}--\r\n".encode())
    return form


class Contest:
    """The two sides, on one platform."""

    def __init__(self, platform: Platform, archive: Path, folder: Path) -> None:
        self._platform = platform
        self._archive = archive
        with archive.open("rb") as file:
            self._sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        self._raw_file = folder / FILE_NAME
        self._form = write_form(archive)
        self._models = 0

    def put_raw(self) -> float:
        """Return the seconds that a bare PUT of the archive takes."""
        seconds = curl("-T", str(self._archive), f"{self._platform.url}{ROUTE}/")
        self._check(self._raw_file)
        self._raw_file.unlink()
        os.sync()
        return seconds

    def upload(self, at_once: int = 1) -> float:
        """Return the seconds until the last of several simultaneous uploads of the archive is answered."""
        first, self._models = self._models, self._models + at_once
        names = [f"bench-{number}" for number in range(first, self._models)]
        with ThreadPoolExecutor(at_once) as pool:
            done = list(pool.map(self._upload, names))
        # The store keeps equal archives once.
        self._check(self._platform.home / "store" / "archives" / f"{self._sha256}.tar.gz")
        for model_id, _ in done:
            model = self._platform.request("GET", f"{self._platform.models_url}/{model_id}")["model"]
            assert model["archive_bytes"] == self._archive.stat().st_size
            self._platform.request("DELETE", f"{self._platform.models_url}/{model_id}")
        os.sync()
        return max(seconds for _, seconds in done)

    def _upload(self, name: str) -> tuple[str, float]:
        return self._platform.upload(self._archive, name=name, model_format="safetensors")

    def upload_form(self) -> float:
        """Return the seconds that sending the ready-made form takes, with the very client that sends the bare PUT.

        `curl -F` reads the file piece by piece, which takes 1.5 s of the server's two cores for each GiB.
        """
        platform = self._platform
        headers = (
            "Authorization: " + platform.authorization,
            f"Content-Type: multipart/form-data; boundary={BOUNDARY}",
        )
        words = [word for header in headers for word in ("-H", header)]
        seconds = curl("-X", "POST", *words, "-T", str(self._form), platform.models_url)
        self._check(platform.home / "store" / "archives" / f"{self._sha256}.tar.gz")
        platform.request("DELETE", f"{platform.models_url}/{FORM_NAME}_1_0_0")
        os.sync()
        return seconds

    def _check(self, stored: Path) -> None:
        with stored.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == self._sha256, "other bytes than were sent"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=1024)
    size_bytes = parser.parse_args().mebibytes * MIB
    with tempfile.TemporaryDirectory(prefix="mixpeek-bench-") as name:
        folder = Path(name)
        small, large = make_archive(folder / "small", 1 * MIB), make_archive(folder / "large", size_bytes)
        with behind_haproxy(folder) as platform:
            deploy_raw_put(platform, folder)
            Contest(platform, small, folder).upload()
            run(Contest(platform, large, folder), MemoryWatch(platform), large.stat().st_size)


def run(contest: Contest, watch: MemoryWatch, size_bytes: int) -> None:
    raw_s, ours_s, curl_form_s = [], [], []
    # The first writes of a fresh machine wait for its memory, on either side.
    contest.put_raw()
    contest.upload_form()
    for _ in range(RUNS):
        raw_s.append(contest.put_raw())
        ours_s.append(contest.upload_form())
        curl_form_s.append(contest.upload())
    # Apart from the timed ones: watching takes a fifth of a core.
    with watch:
        contest.upload_form()
    growth = watch.growth
    with watch:
        together_s = contest.upload(AT_ONCE)
    print_results(
        size_bytes,
        raw_s=median(raw_s),
        ours_s=median(ours_s),
        curl_form_s=median(curl_form_s),
        together_s=together_s,
        growth=growth,
        growth_together=watch.growth,
    )


def deploy_raw_put(platform: Platform, folder: Path) -> None:
    """Add the bare PUT to the platform's cluster."""
    # Ray reads its variables when it is imported, so the driver is a process of its own.
    environment = os.environ | platform.ray_environment()
    subprocess.run(
        [sys.executable, "-m", "benchmarks.raw_put", folder], env=environment, stderr=subprocess.DEVNULL, check=True
    )


def print_results(
    size_bytes: int,
    *,
    raw_s: float,
    ours_s: float,
    curl_form_s: float,
    together_s: float,
    growth: int,
    growth_together: int,
) -> None:
    print_table(
        [f"{size_bytes / MB:.0f} MB", "time", "speed", "of the bare PUT", "server memory"],
        [
            ["bare PUT to disk", f"{raw_s:.2f} s", f"{size_bytes / MB / raw_s:.0f} MB/s", "1.00x", ""],
            [
                "upload",
                f"{ours_s:.2f} s",
                f"{size_bytes / MB / ours_s:.0f} MB/s",
                f"{raw_s / ours_s:.2f}x",
                f"+{growth / MB:.0f} MB",
            ],
            [
                "upload, `curl -F` making the form",
                f"{curl_form_s:.2f} s",
                f"{size_bytes / MB / curl_form_s:.0f} MB/s",
                f"{raw_s / curl_form_s:.2f}x",
                "",
            ],
            [
                f"{AT_ONCE} of these at once",
                f"{together_s:.2f} s",
                f"{AT_ONCE * size_bytes / MB / together_s:.0f} MB/s",
                f"{AT_ONCE * raw_s / together_s:.2f}x",
                f"+{growth_together / MB:.0f} MB",
            ],
        ],
    )
    conclude(
        [
            Claim(text="upload speed over the bare PUT's", measured=raw_s / ours_s, bound=0.8, at_least=True),
            Claim(text="MB of server memory for an upload", measured=growth / MB, bound=64, at_least=False),
            Claim(
                text=f"MB of server memory for {AT_ONCE} uploads at once",
                measured=growth_together / MB,
                bound=256,
                at_least=False,
            ),
        ]
    )


if __name__ == "__main__":
    main()
