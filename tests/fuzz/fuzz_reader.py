"""Coverage-guided fuzzing of the archive reader: ``make fuzz``, or with libFuzzer's options on the command line.

Atheris (libFuzzer for Python) keeps the inputs that reach code no other input reached, and so finds its way into
states that blind mutations seldom meet. The reader is Python throughout but for the inflating, so it sees all of it.
"""

from __future__ import annotations

import gzip
import io
import sys
import tempfile
from pathlib import Path

import atheris
from fuzz_seeds import build_seeds, build_tar

with atheris.instrument_imports(include=["mixpeek_ray.formats"]):
    from mixpeek_ray.core.errors import ArchiveRefusedError
    from mixpeek_ray.formats.tarball import extract

# What a case takes beyond this is a finding: hardening.md's 5 s and 256 MB, over what torch and the corpus take.
LIMITS = ("-timeout=5", "-rss_limit_mb=1024", "-max_len=16384")


def read_one(data: bytes) -> None:
    """Unpack the input as a tar, compressed for it, or as the compressed stream itself."""
    archive = data if data.startswith(b"\x1f\x8b") else gzip.compress(data, 0)
    with tempfile.TemporaryDirectory() as jail:
        folder = Path(jail, "folder")
        folder.mkdir()
        try:
            files = extract(io.BytesIO(archive), folder)
        except ArchiveRefusedError:
            files = ()
        if list(Path(jail).iterdir()) != [folder]:
            raise AssertionError("the archive wrote outside of its folder")
        for file in files:
            if (folder / file.path).stat().st_size != file.size_bytes:
                raise AssertionError(f"{file.path!a} is not as it was announced")


def main() -> None:
    """Fuzz until a finding, or as long as the options say; the corpus starts with the seeds and is thrown away."""
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(build_seeds().values()):
            tar = build_tar(seed.files)
            Path(corpus, f"{number}-tar").write_bytes(tar)
            Path(corpus, f"{number}-gzip").write_bytes(gzip.compress(tar, mtime=0))
        atheris.Setup([sys.argv[0], corpus, *LIMITS, *sys.argv[1:]], read_one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
