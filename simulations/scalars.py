"""TensorBoard events of a run: loss, TAR, ASR and the anomaly scores, one point a round."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self


class TensorBoard:
    """Writes scalars; a resumed run purges what was written after its checkpoint."""

    def __init__(self, folder: Path, completed: int) -> None:
        """Opens the event file (TensorBoard is imported here: it is slow to load)."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=completed + 1)

    def add(self, event: dict[str, Any], evaluation: dict[str, Any] | None) -> None:
        """Adds one round and, when there is one, its evaluation."""
        step = event["round"]
        if event["loss"] is not None:
            self._writer.add_scalar("train/loss", event["loss"], step)
        self._writer.add_scalar("train/seconds", event["seconds"], step)
        self._writer.add_scalar("defence/n_pruned", len(event["pruned"]), step)
        for client in event["clients"]:
            if client["score"] is not None:
                self._writer.add_scalar(f"score/client_{client['client']}", client["score"], step)
        if evaluation is None or "failed" in evaluation:
            return
        for point in evaluation["verification"]["points"]:
            self._writer.add_scalar(f"test/tar_at_{point['alpha']:g}", point["tar"], step)
        self._writer.add_scalar("test/eer", evaluation["verification"]["eer"], step)
        for point in (evaluation["backdoor"] or {"recalibrated": []})["recalibrated"]:
            self._writer.add_scalar(f"backdoor/asr_at_{point['alpha']:g}", point["asr"], step)

    def __enter__(self) -> Self:
        """Returns the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the event file."""
        self._writer.close()
