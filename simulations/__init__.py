"""Whole runs: configuration, engines, recording, comparison."""
