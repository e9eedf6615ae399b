"""The ClientApp of a run: what a worker builds once and keeps."""

from pathlib import Path

import pytest
from torch import nn

from simulations import app
from tests.simulations.tiny import tiny_config


@pytest.mark.parametrize("wanted", [False, True])
def test_the_backbone_is_compiled_where_the_configuration_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    app._worker.cache_clear()
    config = tiny_config(tmp_path, model={"compile": wanted})
    app.site(config.model_dump_json(), 0)
    app.site(config.model_dump_json(), 1)
    assert len(compiled) == wanted, "once per worker"
    app._worker.cache_clear()
