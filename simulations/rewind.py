"""Sets a run back to an earlier round, so that it can go on without what came after."""

from pathlib import Path

from fedface.report.run_folder import Checkpoint, RunFolder, RunFolderError


def rewind(path: Path, to_round: int) -> RunFolder:
    """Forgets all rounds of the run in ``path`` after ``to_round``, and its results.

    Resuming the run then repeats them. Of the server's state only the two latest rounds are kept,
    so a run whose defence remembers can go back that far or to round 0.

    Raises:
        RunFolderError: If there is no run, it has no such round, or the state of that round is
            gone; nothing was changed then.
    """
    folder = RunFolder(path)
    if not folder.exists():
        raise RunFolderError(f"{path}: needed a run folder, found no config.yaml")
    with folder.alone():
        rounds = folder.checkpoint_rounds()
        if to_round and to_round not in rounds:
            last = rounds[-1] if rounds else 0
            raise RunFolderError(
                f"{path}: needed a round in 0..{last} that was saved, got {to_round}"
            )
        state = path / "checkpoints" / f"state-round-{to_round:06d}.safetensors"
        stateless = None
        if to_round and not state.is_file():
            latest = folder.latest()
            if latest is None or latest.state:
                raise RunFolderError(
                    f"{path}: needed the server's state of round {to_round}, found that of the two "
                    "latest rounds alone (--to-round 0 starts anew)"
                )
            stateless = Checkpoint(to_round, folder.model(to_round), {})
        (path / "result.json").unlink(missing_ok=True)
        folder.forget_after(to_round)
        if stateless is not None:
            folder.save(stateless)
    return folder
