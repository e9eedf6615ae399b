"""Kills a run with SIGKILL at random moments, resumes it, and compares it with an unbroken run.

    python benchmarks/kill_anywhere.py [--kills 50] [--seed 0] [--fsync-seconds 0.02]
        [--output FILE.json]

Each run is a process of its own on the in-process engine; it is killed one to three times and
resumed after each. A kill falls a random part of a round after a random round was completed, or,
for one in four, anywhere in the time that the unbroken run took, start and end included. Then the
run's models, the server's state, the sites' private heads and the recorded facts must be those of
the unbroken run, bit for bit. The run carries from round to round whatever a run can carry: sampled
sites, batch statistics, ARIBA's memory, an attack, the learning rate's course, private heads.

Bringing a file to the disk takes ``--fsync-seconds`` longer than it does here, as on a slow disk:
else hardly a kill would fall between the beginning and the end of a write. The exit code is 1 if
anything differs.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from time import monotonic, sleep
from traceback import print_exc
from typing import Any

from measuring import describe_machine, write_json
from rich.console import Console
from safetensors.torch import load_file

from fedface.config import parse_config
from fedface.report.run_folder import RunFolder
from simulations import app, results, server  # imported before processes are split off
from simulations.execution import run
from simulations.schema import RunConfig

MOST_KILLS_OF_ONE_RUN = 3
N_ROUNDS = 5
POLL_SECONDS = 0.001
ANYWHERE = 0.25
"""The share of kills that may fall before the first round and after the last."""


@dataclass(frozen=True)
class Kill:
    """Where one SIGKILL fell.

    Attributes:
        run: The number of the run.
        seconds: After the process was started.
        completed: Rounds whose checkpoint was there.
        half_written: Files that were being written.
        facts: Lines of ``events.jsonl``.
    """

    run: int
    seconds: float
    completed: int
    half_written: int
    facts: int


@dataclass(frozen=True)
class Times:
    """Seconds of an unbroken run: of the whole process, and of one of its later rounds."""

    whole: float
    round: float


def config_of(folder: Path) -> RunConfig:
    """Returns the run, small enough that fifty of them take minutes."""
    content: dict[str, Any] = {
        "name": "run",
        "data": {
            "faces": {
                "name": "renderer",
                "n_identities": 24,
                "images_per_identity": 6,
                "size": 16,
            },
            "split": {"test": 6, "calibration": 6},
        },
        "model": {
            "backbone": {
                "name": "small_conv",
                "widths": [4, 4, 8, 8],
                "embedding_size": 16,
                "norm": "batch",
            },
            "head": {"name": "cosface", "scale": 16, "margin": 0.2},
        },
        "training": {"batch_size": 6, "optimizer": {"final_share": 0.1}},
        "federation": {"n_clients": 4, "clients_per_round": 3, "n_rounds": N_ROUNDS},
        "aggregator": {"name": "ariba"},
        "attack": {
            "name": "model_replacement",
            "malicious_share": 0.25,
            "trigger": {"name": "patch"},
            "goal": {"name": "key"},
        },
        "evaluation": {"false_accept_rates": [0.01, 0.1], "n_bootstrap": 40, "local": True},
        "engine": {"name": "in_process"},
        "output": str(folder),
    }
    return parse_config(content, RunConfig, "kill_anywhere")


def started(config: RunConfig, fsync_seconds: float) -> int:
    """Returns the process id of the run, begun or resumed; it ends with code 0 if all went well."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        _slow_disk(fsync_seconds)
        with (config.output / "log.txt").open("a") as log:
            run(config, Console(file=log), resume=True)
        code = 0
    except BaseException:
        print_exc()
    finally:
        os._exit(code)


def _slow_disk(seconds: float) -> None:
    """Makes every fsync of this process take longer, before and after the bytes are there."""
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        sleep(seconds / 2)
        fsync(descriptor)
        sleep(seconds / 2)

    os.fsync = slow


def reached(process: int, folder: RunFolder, n_rounds: int) -> bool:
    """Waits until ``n_rounds`` are completed; returns False if the process came to its end."""
    while not folder.exists() or len(folder.checkpoint_rounds()) < n_rounds:
        if ended(process, 0):
            return False
        sleep(POLL_SECONDS)
    return True


def ended(process: int, seconds: float) -> bool:
    """Returns whether a process ended by itself within ``seconds``.

    Raises:
        RuntimeError: If it ended with another code than 0.
    """
    deadline = monotonic() + seconds
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found and status:
            raise RuntimeError(f"the run needs to end with code 0, got status {status}")
        if found or monotonic() >= deadline:
            return bool(found)
        sleep(POLL_SECONDS)


def killed(process: int) -> None:
    """Sends SIGKILL and waits until the process is gone."""
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def fingerprint(folder: RunFolder) -> dict[str, str]:
    """Returns a digest of all that a run leaves for later: by file, and of the facts."""
    files = sorted(folder.path.rglob("round-*.safetensors"))
    files += sorted(folder.path.rglob("state-round-*.safetensors"))[-1:]
    found = {str(p.relative_to(folder.path)): sha256(p.read_bytes()).hexdigest() for p in files}
    for path in sorted(folder.path.rglob("head-round-*.safetensors")):
        digest = sha256()
        for name, value in sorted(load_file(path).items()):
            digest.update(name.encode() + value.numpy().tobytes())
        found[str(path.relative_to(folder.path))] = digest.hexdigest()
    facts = [{**fact, "seconds": 0} for fact in folder.events()]
    return found | {"facts": sha256(repr(facts).encode()).hexdigest()}


def where(number: int, seconds: float, folder: RunFolder) -> Kill:
    """Returns what a kill left."""
    events = folder.path / "events.jsonl"
    return Kill(
        number,
        round(seconds, 3),
        len(folder.checkpoint_rounds()),
        len(list(folder.path.rglob("*.partial-*"))),
        len(events.read_text().splitlines()) if events.is_file() else 0,
    )


def broken_run(
    number: int, n_kills: int, times: Times, folder: Path, rng: random.Random, slow: float
) -> tuple[list[Kill], dict[str, str]]:
    """Kills one run ``n_kills`` times and lets it end; returns where, and its fingerprint.

    A process that ended before its moment came was not killed.
    """
    config, kills = config_of(folder), []
    folder.mkdir()
    run_folder = RunFolder(config.folder)
    for _ in range(n_kills):
        anywhere, begun = rng.random() < ANYWHERE, monotonic()
        target = rng.randint(len(run_folder.checkpoint_rounds()), N_ROUNDS)
        moment = rng.uniform(0, times.whole if anywhere else times.round)
        process = started(config, slow)
        if not anywhere and not reached(process, run_folder, target):
            break
        if ended(process, moment):
            break
        killed(process)
        kills.append(where(number, monotonic() - begun, run_folder))
    if not ended(started(config, slow), 60 + 20 * times.whole):
        raise RuntimeError(f"run {number} needs to come to its end, got no end")
    return kills, fingerprint(run_folder)


def unbroken_run(folder: Path, slow: float) -> tuple[Times, dict[str, str]]:
    """Returns how long an unbroken run takes, and its fingerprint."""
    folder.mkdir()
    config, begun = config_of(folder), monotonic()
    process, run_folder = started(config, slow), RunFolder(config.folder)
    reached(process, run_folder, 1)
    first = monotonic()
    reached(process, run_folder, N_ROUNDS)
    last = monotonic()
    if not ended(process, 3600):
        raise RuntimeError("the unbroken run needs to come to its end within an hour")
    times = Times(monotonic() - begun, (last - first) / (N_ROUNDS - 1))
    return times, fingerprint(run_folder)


def measure(n_kills: int, seed: int, slow: float, top: Path, console: Console) -> dict[str, Any]:
    """Returns where ``n_kills`` kills fell and which runs differ from the unbroken one."""
    times, expected = unbroken_run(top / "unbroken", slow)
    rng, kills, differing, number = random.Random(seed), [], [], 0
    while len(kills) < n_kills:
        number += 1
        wanted = min(rng.randint(1, MOST_KILLS_OF_ONE_RUN), n_kills - len(kills))
        fell, found = broken_run(number, wanted, times, top / f"run-{number}", rng, slow)
        kills += fell
        wrong = sorted(k for k in {*found, *expected} if found.get(k) != expected.get(k))
        if wrong:
            differing.append({"run": number, "files": wrong})
        state = f"differs in {', '.join(wrong[:3])}" if wrong else "equal"
        console.print(f"run {number}: killed {len(fell)} times, {state}", highlight=False)
    return {
        "unbroken_seconds": round(times.whole, 2),
        "n_compared": len(expected),
        "n_kills": len(kills),
        "n_runs": number,
        "differing": differing,
        "kills": [asdict(kill) for kill in kills],
    }


def main() -> None:
    """Measures, prints a summary, and writes it down where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fsync-seconds", type=float, default=0.02)
    parser.add_argument("--output", type=Path, default=None, help="JSON file for the results")
    chosen = parser.parse_args()
    if chosen.kills < 1:
        parser.error(f"--kills needs to be >= 1, got {chosen.kills}")
    console, machine = Console(), describe_machine()
    with tempfile.TemporaryDirectory() as top:
        # Faces are drawn once, and not in the folder of whoever calls.
        os.environ.setdefault("FEDFACE_CACHE", str(Path(top) / "faces"))
        found = measure(chosen.kills, chosen.seed, chosen.fsync_seconds, Path(top), console)
    by_round = Counter(kill["completed"] for kill in found["kills"])
    rounds = ", ".join(f"{n} after {r} rounds" for r, n in sorted(by_round.items()))
    half = sum(kill["half_written"] > 0 for kill in found["kills"])
    console.print(
        f"{found['n_kills']} kills in {found['n_runs']} runs ({rounds}; {half} while a file was "
        f"being written): {len(found['differing'])} runs differ from the unbroken one",
        highlight=False,
    )
    if chosen.output is not None:
        settings = {"kills": chosen.kills, "seed": chosen.seed, "fsync": chosen.fsync_seconds}
        write_json(chosen.output, "kill_anywhere", machine, settings, found)
    sys.exit(1 if found["differing"] else 0)


# Modules that a run imports while it works: a process that is split off shall have them already.
_PRELOADED = (app, results, server)

if __name__ == "__main__":
    main()
