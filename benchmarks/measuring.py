"""What the speed benchmarks share: the machine, fresh processes, a process tree's memory and CPU.

At import it needs the standard library alone, because the interpreters of peers' own environments
import it too. Linux only: memory and CPU seconds are read from /proc.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from statistics import median
from threading import Event, Thread
from time import perf_counter, process_time
from types import TracebackType
from typing import Any
from uuid import uuid4

CACHE = Path.home() / ".cache" / "fedface-benchmarks"
"""Where peers' environments are kept between runs."""

MALLOC = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "4000000000"}
"""The allocator settings of fedface's workers (simulations.engine.workers.ENVIRONMENT)."""

RESULT = "RESULT "
"""Before the JSON of a case's answer in what its process prints."""

MARK = "FEDFACE_BENCHMARK_CASE"
"""The variable by which a case's processes are known."""

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_LEFT_AT_MOST = 0.9


@dataclass(frozen=True)
class Process:
    """One living process: its parent's and its session's ids, CPU seconds with reaped children."""

    parent: int
    session: int
    cpu_seconds: float


def processes() -> dict[int, Process]:
    """Returns every process that can be read, by id."""
    found = {}
    for folder in _PROC.iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        cpu = sum(map(int, fields[11:15])) / _TICKS
        found[int(folder.name)] = Process(int(fields[1]), int(fields[3]), cpu)
    return found


def tree(root: int, there: Mapping[int, Process]) -> set[int]:
    """Returns ``root`` and all its descendants among the processes ``there``.

    If ``root`` leads a session, processes of that session count too: they stay in it when their
    parent dies.
    """
    children: dict[int, list[int]] = {}
    for number, process in there.items():
        children.setdefault(process.parent, []).append(number)
    leads = root in there and there[root].session == root
    waiting = [root, *(n for n, p in there.items() if leads and p.session == root)]
    found: set[int] = set()
    while waiting:
        number = waiting.pop()
        if number not in found and number in there:
            found.add(number)
            waiting += children.get(number, [])
    return found


def tree_cpu_seconds() -> float:
    """Returns the CPU seconds so far of this process and its descendants.

    This process to the nanosecond, the others in the kernel's ticks (10 ms).
    """
    there, own = processes(), os.getpid()
    others = sum(there[number].cpu_seconds for number in tree(own, there) - {own})
    reaped = os.times()
    return process_time() + others + reaped.children_user + reaped.children_system


def proportional_bytes(root: int) -> int:
    """Returns the memory of ``root`` and its descendants; pages that they share count once.

    The sum of the kernel's proportional set sizes (PSS).
    """
    total = 0
    for number in tree(root, processes()):
        try:
            lines = (_PROC / str(number) / "smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return total


class PeakMemory:
    """Samples the memory of this process and its descendants while a ``with`` block runs.

    Reading it makes the kernel walk all page tables: never time what runs inside.

    Attributes:
        peak: The largest sample in bytes.
        n_samples: How often it was looked.
    """

    def __init__(self, interval: float = 0.05) -> None:
        """Samples every ``interval`` seconds once the block is entered."""
        self.interval = interval
        self.peak = 0
        self.n_samples = 0
        self._ended = Event()
        self._thread = Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "PeakMemory":
        """Starts to sample."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Takes a last sample and ends."""
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        last = False
        while not last:
            last = self._ended.wait(self.interval if self.n_samples else 0)
            self.peak = max(self.peak, proportional_bytes(os.getpid()))
            self.n_samples += 1


def own_peak_bytes() -> int:
    """Returns the largest resident set of this process since :func:`forget_peak`."""
    return _status("VmHWM")


def own_bytes() -> int:
    """Returns the resident set of this process."""
    return _status("VmRSS")


def forget_peak() -> None:
    """Sets the largest resident set back to the present one."""
    (_PROC / "self" / "clear_refs").write_text("5")


def _status(name: str) -> int:
    lines = (_PROC / "self" / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds and CPU seconds (whole process tree) of one stretch of work."""

    seconds: float
    cpu_seconds: float


def timed(work: Callable[[], object]) -> Timing:
    """Runs ``work`` and says how long it took; its CPU seconds are those of the whole tree."""
    cpu, start = tree_cpu_seconds(), perf_counter()
    work()
    seconds = perf_counter() - start
    return Timing(seconds, tree_cpu_seconds() - cpu)


def typical(timings: Sequence[Timing]) -> dict[str, float]:
    """Returns the median seconds and, because CPU seconds come in ticks, their mean."""
    return {
        "seconds": median(t.seconds for t in timings),
        "cpu_seconds": sum(t.cpu_seconds for t in timings) / len(timings),
    }


def available_bytes() -> int:
    """Returns how much memory new work can take before the machine swaps or kills."""
    lines = (_PROC / "meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024


def too_large(needed: float, available: int | None = None) -> str | None:
    """Returns why a case that needs this many bytes is left out, None if it fits."""
    there = available_bytes() if available is None else available
    if needed <= _LEFT_AT_MOST * there:
        return None
    return f"left out: needs about {needed / 1e9:.1f} GB, found {there / 1e9:.1f} GB"


def run_case(
    script: Path,
    case: Mapping[str, Any],
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
    timeout: float = 900.0,
) -> dict[str, Any]:
    """Runs ``main(["--case", JSON])`` of ``script`` in a fresh process; returns what it answered.

    The script is imported by its name, so that workers which it starts can import it too. The
    process leads a session and starts with one OpenMP thread and glibc's own allocator settings,
    unless ``environment`` says otherwise. Whatever it leaves behind is ended.

    Returns:
        ``case`` and the answer; or ``case`` and ``error``, why there is no answer, in one line.
    """
    own = {name: value for name, value in os.environ.items() if name not in MALLOC}
    mark = uuid4().hex
    own |= {"OMP_NUM_THREADS": "1", **(environment or {}), MARK: mark}
    own["PYTHONPATH"] = os.pathsep.join(filter(None, (str(script.parent), own.get("PYTHONPATH"))))
    code = f"import sys, {script.stem} as script; script.main(sys.argv[1:])"
    command = [python, "-c", code, "--case", json.dumps(dict(case))]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = subprocess.Popen(command, env=own, stdout=out, stderr=err, start_new_session=True)
        try:
            started.wait(timeout)
            why = f"ended with code {started.returncode}"
        except subprocess.TimeoutExpired:
            why = f"took longer than {timeout:g} s"
        finally:
            _end(mark)
            started.wait()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().strip().splitlines())
    answers = [line for line in texts[0] if line.startswith(RESULT)]
    if started.returncode == 0 and answers:
        return {**case, **json.loads(answers[-1].removeprefix(RESULT))}
    return {**case, "error": f"{why}: {texts[1][-1] if texts[1] else 'no message'}"[:300]}


def _end(mark: str) -> None:
    """Kills every process that inherited ``mark`` in its environment: a case and what it left."""
    wanted = f"{MARK}={mark}".encode()
    for folder in _PROC.iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), SIGKILL)
        except OSError:  # it ended meanwhile, or is another user's
            continue


def answer(result: Mapping[str, Any]) -> None:
    """Hands a case's result to :func:`run_case`."""
    sys.stdout.write(f"\n{RESULT}{json.dumps(dict(result))}\n")


def describe_machine() -> dict[str, Any]:
    """Returns date, machine, CPU model, cores, memory, load, commit and package versions."""
    from simulations.environment import describe_environment

    models = [
        line.partition(":")[2].strip()
        for line in (_PROC / "cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        **describe_environment(),
        "cpu_model": models[0] if models else None,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": os.getloadavg()[0],
    }


def write_json(
    path: Path,
    benchmark: str,
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
) -> None:
    """Writes what was measured, with what and where; ``machine`` was asked before the measuring."""
    from fedface.report.run_folder import write_atomically

    content = {"benchmark": benchmark, **machine, "settings": dict(settings), **results}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def environment_of(name: str, installs: Sequence[Sequence[str]], folder: Path = CACHE) -> str:
    """Returns the interpreter of a peer's own environment, which is made if it is not there.

    Args:
        name: The environment's folder below ``folder``.
        installs: The arguments of each ``pip install``, in order; if they differ from those the
            environment was made with, it is made anew.
        folder: Where environments are kept.

    Raises:
        subprocess.CalledProcessError: If pip fails.
    """
    place, wanted = folder / name, json.dumps([sys.version, *map(list, installs)])
    python, mark = place / "bin" / "python", place / "installed.json"
    if not (mark.exists() and mark.read_text() == wanted):
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        for packages in installs:
            subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
        mark.write_text(wanted)
    return str(python)


def gigabytes(n_bytes: float | None) -> str:
    """Returns bytes as a table's cell, in GB."""
    return "-" if n_bytes is None else f"{n_bytes / 1e9:.2f}"


def figure(value: float | None, digits: int = 3) -> str:
    """Returns a table's cell of so many significant digits."""
    return "-" if value is None else f"{value:.{digits}g}"
