"""The script behind ``python simulations/run.py CONFIG``: ``fedface run`` by another name."""

from simulations.cli import run_main

if __name__ == "__main__":
    run_main()
