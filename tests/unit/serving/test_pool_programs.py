"""TorchScript programs in processes of their own: what they compute, and what they cannot do to anybody else."""

from __future__ import annotations

import io
import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from waiting import wait_for

from mixpeek_ray.core.errors import UnavailableError, ValidationError
from mixpeek_ray.core.limits import GIB
from mixpeek_ray.core.records import FileInfo, ModelKind
from mixpeek_ray.formats.packed import pack
from mixpeek_ray.formats.pytorch import PyTorchFormat
from mixpeek_ray.loading.open_model import DeployedModel
from mixpeek_ray.servables.base import Parameters
from mixpeek_ray.servables.script_frames import BadFrameError, Frame, receive, send
from mixpeek_ray.serving import pool_programs
from mixpeek_ray.serving.pool_programs import ProgramCrashedError, ScriptHosts, ScriptServable

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit")

GIVEN = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
PARAMETERS = Parameters()


class Program(torch.nn.Module):
    """Adds a weight; asked by a number, takes more memory than it may, or never ends."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(3.0))

    def forward(self, x: torch.Tensor, wish: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if int(wish) == 1:
            x = torch.ones(68719476736, dtype=torch.uint8)[:3].float()
        while int(wish) == 2:
            x = x + 1
        return x + self.weight, x.sum()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DeployedModel:
    folder = tmp_path_factory.mktemp("program")
    content = io.BytesIO()
    torch.jit.save(torch.jit.script(Program()), content)
    (folder / "model.pt").write_bytes(content.getvalue())
    opened = PyTorchFormat().open(folder, [FileInfo(path="model.pt", size_bytes=len(content.getvalue()))])
    index = pack(opened.tensors, folder / "packed")
    data = np.frombuffer((folder / "packed").read_bytes(), dtype=np.uint8)
    return DeployedModel(
        content_id="0" * 64, kind=ModelKind.TORCHSCRIPT, index=index, data=data, companions=opened.companions
    )


Open = Callable[..., ScriptServable]


@pytest.fixture
def open_program(model: DeployedModel) -> Iterator[Open]:
    hosts = ScriptHosts()
    opened: list[ScriptServable] = []

    def open_one(namespace_id: str = "ns_acme", name: str = "one") -> ScriptServable:
        opened.append(hosts.open(model, namespace_id, name=f"{namespace_id}/{name}"))
        return opened[-1]

    yield open_one
    for servable in opened:
        servable.close()


def ask(servable: ScriptServable, wish: int = 0) -> dict[str, np.ndarray]:
    return dict(servable.compute({"x": GIVEN, "wish": np.array(wish)}, PARAMETERS))


def process_of(servable: ScriptServable) -> int:
    process = servable._host.process
    assert process is not None
    return process.pid


def test_a_program_computes_and_tells_its_inputs(open_program: Open) -> None:
    servable = open_program()
    assert [signature.name for signature in servable.spec.inputs] == ["x", "wish"]
    found = ask(servable)
    np.testing.assert_array_equal(found["output_0"], GIVEN + np.arange(3, dtype=np.float32))
    np.testing.assert_allclose(found["output_1"], GIVEN.sum(), atol=1e-6)


def test_namespaces_share_no_process_and_the_last_one_out_ends_theirs(open_program: Open) -> None:
    first, second, foreign = open_program(), open_program(name="two"), open_program("ns_other")
    assert process_of(first) == process_of(second)
    pids = {process_of(first), process_of(foreign), os.getpid()}
    assert len(pids) == 3
    pid = process_of(first)
    first.close()
    assert ask(second)
    second.close()
    assert not Path("/proc", str(pid)).exists()
    assert ask(foreign)


def test_memory_beyond_the_limit_is_refused_to_the_program_alone(open_program: Open) -> None:
    servable = open_program()
    with pytest.raises(ValidationError, match="fails on these inputs"):
        ask(servable, 1)
    assert ask(servable)
    limits = Path("/proc", str(process_of(servable)), "limits").read_text()
    (data,) = [line for line in limits.splitlines() if line.startswith("Max data size")]
    assert int(data.split()[3]) < 8 * GIB
    (files,) = [line for line in limits.splitlines() if line.startswith("Max file size")]
    assert files.split()[3] == "0"


def test_a_program_that_never_ends_is_ended(open_program: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    servable = open_program()
    ask(servable)
    pid = process_of(servable)
    monkeypatch.setattr(pool_programs, "_COMPUTE_S", 0.2)
    with pytest.raises(UnavailableError, match="takes longer"):
        ask(servable, 2)
    assert not Path("/proc", str(pid)).exists()
    monkeypatch.undo()
    assert ask(servable)


def test_a_process_that_died_is_started_again_for_the_next_request(open_program: Open) -> None:
    servable = open_program()
    os.kill(process_of(servable), signal.SIGKILL)
    with pytest.raises(UnavailableError, match="ends its process") as lost:
        ask(servable)
    assert not isinstance(lost.value, ProgramCrashedError)
    assert ask(servable)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_is_told_from_other_ends(open_program: Open, number: signal.Signals) -> None:
    servable = open_program()
    pid = process_of(servable)
    with ThreadPoolExecutor(1) as pool:
        # To the kernel a fault of native code is a signal to the thread that computes.
        endless = pool.submit(ask, servable, 2)
        wait_for(lambda: Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] == "R")
        os.kill(pid, number)
        with pytest.raises(ProgramCrashedError, match="ends its process") as crash:
            endless.result()
    assert crash.value.reason == signal.strsignal(number)
    assert ask(servable)


def test_the_process_ends_with_its_replica_whatever_it_computes(open_program: Open) -> None:
    servable = open_program()
    pid, stream = process_of(servable), servable._host._stream
    assert stream is not None
    send(stream, Frame(op="compute", key=servable._key, arrays={"x": GIVEN, "wish": np.array(2)}))
    stream.shutdown(socket.SHUT_RDWR)
    process = servable._host.process
    assert process is not None
    wait_for(lambda: process.poll() is not None)
    assert not Path("/proc", str(pid)).exists()


def test_no_secret_of_the_replica_reaches_it(open_program: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXPEEK_SECRET_FILE", "not-for-programs")
    servable = open_program()
    assert b"not-for-programs" not in Path("/proc", str(process_of(servable)), "environ").read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        b'["computed", "", [], [], [["x", "float32", [2]]]]',
        b'["computed", "", [], [], [["x", "string", [1]]]]',
        b'["computed", "", [], [], [["x", "float32", [-1]]]]',
        b'["computed", "", [], [], [["x", "nothing", [1]]]]',
        b"\xff",
    ],
)
def test_what_a_process_says_is_read_with_suspicion(text: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(len(text).to_bytes(8, "little") + (4).to_bytes(8, "little") + bytes(8) + text + bytes(4))
        with pytest.raises(BadFrameError):
            receive(ours)


def test_a_length_beyond_all_is_not_waited_for() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall((2**62).to_bytes(8, "little") * 3)
        with pytest.raises(BadFrameError):
            receive(ours)
