"""What was measured, as tables, and what it must hold to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.report import Claim, median, print_table
from benchmarks.serving import ours
from benchmarks.serving.in_process import FAMILY, SENTENCE_TRANSFORMERS
from benchmarks.serving.load import Load

CONNECTIONS = (1, 16, 64)
_SATURATED = CONNECTIONS[-1]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the load generator."""

    server: str
    workload: str
    connections: int
    load: Load


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """One run of a library in a process."""

    library: str
    workload: str
    sentences_per_s: float


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that was measured, several rounds of it."""

    cells: Sequence[Cell]
    ceilings: Sequence[Ceiling]
    # The smallest cosine of a server's vector to the reference's, by server.
    cosines: Mapping[str, float]

    @property
    def servers(self) -> list[str]:
        """The servers' names, in the order in which they were measured."""
        return list(dict.fromkeys(cell.server for cell in self.cells))

    @property
    def workloads(self) -> list[str]:
        """The workloads' names, in the order in which they were measured."""
        return list(dict.fromkeys(cell.workload for cell in self.cells))

    def load(self, server: str, workload: str, connections: int) -> Load:
        """Return the medians of a cell's rounds, and all errors of them."""
        key = (server, workload, connections)
        runs = [cell.load for cell in self.cells if (cell.server, cell.workload, cell.connections) == key]
        return Load(
            requests_per_s=median([run.requests_per_s for run in runs]),
            p50_s=median([run.p50_s for run in runs]),
            p99_s=median([run.p99_s for run in runs]),
            errors=sum(run.errors for run in runs),
            generator_cpu=max(run.generator_cpu for run in runs),
        )

    def ceiling(self, library: str, workload: str) -> float:
        """Return the median sentences/s of a library."""
        return median(
            [run.sentences_per_s for run in self.ceilings if (run.library, run.workload) == (library, workload)]
        )

    def best_peer(self, workload: str, connections: int) -> Load:
        """Return the load of the peer that answered the most requests/s."""
        peers = [self.load(server, workload, connections) for server in self.servers if server != ours.NAME]
        return max(peers, key=lambda load: load.requests_per_s)


def print_tables(results: Results) -> None:
    """Print one table a workload: latency with one connection, throughput with many."""
    for workload in results.workloads:
        header = [workload, "1 connection: p50, p99"]
        for connections in CONNECTIONS[1:]:
            header += [f"{connections}: requests/s", "of the best peer", "p50, p99"]
        rows = [_row(results, server, workload) for server in results.servers]
        for library, label in ((SENTENCE_TRANSFORMERS, "sentence-transformers"), (FAMILY, "this platform's library")):
            rate = f"{results.ceiling(library, workload):.0f}"
            rows.append([f"{label}, no server", "", *2 * [rate, "", ""], "", ""])
        print_table([*header, "errors", "cosine to fp32"], rows)
        print()
    cpu = max(cell.load.generator_cpu for cell in results.cells)
    print(f"The load generator took at most {cpu:.0%} of a core.")


def _row(results: Results, server: str, workload: str) -> list[str]:
    single = results.load(server, workload, 1)
    row = [server, _milliseconds(single)]
    errors = single.errors
    for connections in CONNECTIONS[1:]:
        load = results.load(server, workload, connections)
        ratio = load.requests_per_s / results.best_peer(workload, connections).requests_per_s
        row += [f"{load.requests_per_s:.0f}", f"{ratio:.2f}x", _milliseconds(load)]
        errors += load.errors
    return [*row, str(errors), f"{results.cosines[server]:.6f}"]


def _milliseconds(load: Load) -> str:
    return f"{load.p50_s * 1e3:.0f}, {load.p99_s * 1e3:.0f} ms"


def claims(results: Results) -> list[Claim]:
    """Return what this platform must hold to, each with its figure."""
    held = [
        Claim(
            text="1 - the smallest cosine to the fp32 reference",
            measured=1 - results.cosines[ours.NAME],
            bound=1e-4,
            at_least=False,
        )
    ]
    for workload in results.workloads:
        held += _claims_of(results, workload)
    return held


def _claims_of(results: Results, workload: str) -> list[Claim]:
    loads = {connections: results.load(ours.NAME, workload, connections) for connections in CONNECTIONS}
    fastest_s = min(results.load(server, workload, 1).p50_s for server in results.servers if server != ours.NAME)
    held = [
        Claim(
            text=f"{workload}: requests/s at {connections} over the best peer's",
            measured=loads[connections].requests_per_s / results.best_peer(workload, connections).requests_per_s,
            bound=1.5,
            at_least=True,
        )
        for connections in CONNECTIONS[1:]
    ]
    held += [
        Claim(
            text=f"{workload}: p50 at 1 over the best peer's",
            measured=loads[1].p50_s / fastest_s,
            bound=1.0,
            at_least=False,
        ),
        Claim(
            text=f"{workload}: errors",
            measured=sum(load.errors for load in loads.values()),
            bound=0,
            at_least=False,
        ),
    ]
    library = SENTENCE_TRANSFORMERS
    held.append(
        Claim(
            text=f"{workload}: requests/s at {_SATURATED} over what {library} does without a server",
            measured=loads[_SATURATED].requests_per_s / results.ceiling(library, workload),
            bound=0.9,
            at_least=True,
        )
    )
    return held
