"""Each message at a real site starts a fresh Python process, which imports only what it uses."""

import subprocess
import sys

HEAVY = ("sklearn", "opacus", "ray", "scipy.stats", "plotly", "pandas", "tensorboard")


def test_a_sites_process_imports_nothing_heavy_that_training_does_not_need() -> None:
    code = (
        "import sys, simulations.deploy.site_app; "
        f"print(*(name for name in {HEAVY} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
