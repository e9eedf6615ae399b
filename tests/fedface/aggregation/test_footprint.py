"""What a server step costs in memory, measured from outside on a cohort of some size."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LIMIT = 0.15
"""The most memory beside the cohort's updates, as a share of them (more: see ``MIXING``)."""

MIXING = {"bucketing": 0.65, "nnm": 1.15}
"""Mixing steps build the mixed cohort: half as large in buckets of two, as large in ``nnm``."""

SCRATCH_MB = 40
"""Blocks in the caches of two threads, and what the allocator keeps: the same for any cohort."""

RULES = [
    "bucketing",
    "bulyan",
    "centered_clipping",
    "dnc",
    "geometric_median",
    "krum",
    "mean",
    "median",
    "multi_krum",
    "nnm",
    "norm_clipping",
    "rlr",
    "trimmed_mean",
    "ariba_literal",
    "ariba",
    "foolsgold",
]

SCRIPT = """
import re, sys, torch
from pathlib import Path
from pydantic import TypeAdapter
from fedface.aggregation import AnyAggregator
from fedface.aggregation.cohort import Cohort
from fedface.parameters import Layout

def kilobytes(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def cohort_of(shapes):
    layout = Layout.from_shapes(shapes)
    updates, g = torch.empty(20, layout.dim), torch.Generator().manual_seed(0)
    for row in updates:
        row.normal_(generator=g)
    ones = torch.ones(20, dtype=torch.int64)
    return Cohort(updates, layout, ones, ones, tuple(range(20)))

torch.set_num_threads(2)
rule = TypeAdapter(AnyAggregator).validate_python({"name": sys.argv[1]})
rule(cohort_of({"fc.weight": (40, 60)}), {})
convs = {f"conv{i}.weight": (256, 256, 3, 3) for i in range(3)}
cohort = cohort_of({**convs, "fc.weight": (64, 2048), "fc.bias": (64,)})
before = kilobytes("VmRSS")
result, state = rule(cohort, {})
extra = kilobytes("VmHWM") - before
kept = sum(value.nbytes for value in state.values()) / 1024
print(extra, kept, cohort.updates.nbytes / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("name", RULES)
def test_no_rule_copies_the_cohort(name):
    root = Path(__file__).parents[3]
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, name],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "2"},
    )
    extra, state, cohort = (float(number) for number in found.stdout.split())
    share = MIXING.get(name, LIMIT)
    assert extra - state < share * cohort + 1024 * SCRATCH_MB
