"""The matrix that workers write their updates into."""

import gc
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from simulations.engine.cohort_memory import CohortMemory, opened

shared = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="needs memory files, which Linux alone has"
)


def test_rows_are_given_out_in_order_and_again_when_nobody_holds_them() -> None:
    memory = CohortMemory(3, 2)
    rows = [memory.row() for _ in range(3)]
    assert [row.index for row in rows] == [0, 1, 2]
    del rows[1]
    again = memory.row()
    assert again.index == 1
    rows.clear()
    del again
    assert [memory.row().index for _ in range(1)] == [0], "the lowest free row comes first"
    held = [memory.row() for _ in range(3)]
    with pytest.raises(IndexError):
        memory.row()
    del held


def test_rows_are_the_matrix() -> None:
    memory = CohortMemory(3, 4)
    row = memory.row()
    row.values.copy_(torch.arange(4.0))
    assert memory.matrix.tolist() == [[0, 1, 2, 3], [0] * 4, [0] * 4]


@pytest.mark.parametrize(("n_rows", "dim"), [(0, 5), (5, 0)])
def test_no_memory_is_refused(n_rows: int, dim: int) -> None:
    with pytest.raises(ValueError, match="needs n_rows, dim >= 1"):
        CohortMemory(n_rows, dim)


@shared
def test_another_process_writes_where_the_server_reads() -> None:
    memory = CohortMemory(4, 6)
    code = (
        "from simulations.engine.cohort_memory import Place, opened\n"
        f"opened({memory.place!r})[2] = 7.0\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
    assert memory.matrix.sum(dim=1).tolist() == [0, 0, 42, 0]


@shared
def test_another_file_at_the_same_path_is_not_taken_for_it() -> None:
    memory = CohortMemory(2, 2)
    assert memory.place is not None
    assert opened(memory.place) is not None
    assert opened(replace(memory.place, inode=(0, 0))) is None
    assert opened(replace(memory.place, path="/proc/0/fd/0")) is None


@shared
def test_it_is_closed_when_nobody_holds_it() -> None:
    memory = CohortMemory(2, 2)
    place, values = memory.place, memory.matrix[0]
    assert place is not None
    del memory
    gc.collect()
    assert not os.path.exists(place.path)
    values += 1  # what somebody still looks at stays
    assert values.tolist() == [1, 1]


@shared
def test_memory_costs_nothing_before_it_is_written() -> None:
    memory = CohortMemory(1000, 50_000_000)  # 200 GB
    memory.row().values[:10] = 1.0
    assert memory.matrix[0, :12].sum() == 10
