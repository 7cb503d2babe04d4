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
from fuzz_mutations import repair_checksums
from fuzz_seeds import build_seeds, build_tar

with atheris.instrument_imports(include=["mixpeek_ray.formats"]):
    from mixpeek_ray.core.errors import ArchiveRefusedError
    from mixpeek_ray.formats.tarball import extract

# What a case takes beyond this is a finding: hardening.md's 5 s and 256 MB, over what torch and the corpus take.
LIMITS = ("-timeout=5", "-rss_limit_mb=1024", "-max_len=16384", "-len_control=0")
# One input in so many keeps its checksums, and is refused for the first wrong one.
AS_IT_IS = 8
BLOCK_BYTES = 512


def read_one(data: bytes) -> None:
    """Unpack the input: a tar, compressed here, or else as the compressed stream itself."""
    tar = repair_checksums(data) if len(data) % AS_IT_IS else data
    archive = data if data.startswith(b"\x1f\x8b") else gzip.compress(tar, 0)
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
            # Without the padding to 10 KiB that tarfile adds, which would draw most of the mutations.
            tar = build_tar(seed.files).rstrip(b"\0")
            Path(corpus, str(number)).write_bytes(tar + bytes(-len(tar) % BLOCK_BYTES + 2 * BLOCK_BYTES))
        atheris.Setup([sys.argv[0], corpus, *LIMITS, *sys.argv[1:]], read_one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
