import pytest

from fedface.config import Config, ConfigError, parse_config
from fedface.heads import AnyHead, ArcFace, CosFace, Softmax


class Run(Config):
    head: AnyHead


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"name": "arcface", "scale": 16}, ArcFace(scale=16)),
        ({"name": "cosface", "margin": 0.2}, CosFace(margin=0.2)),
        ({"name": "softmax"}, Softmax()),
    ],
)
def test_name_picks_the_head(fields, expected):
    run = parse_config({"head": fields}, Run, "a.yaml")
    assert run.head == expected
    assert Run.model_validate(run.model_dump(mode="json")) == run


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"arcface.*cosface.*softmax"):
        parse_config({"head": {"name": "triplet"}}, Run, "a.yaml")
