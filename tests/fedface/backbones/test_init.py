import pytest

from fedface.backbones import AnyBackbone, IResNet, MobileFaceNet, SmallConv
from fedface.config import Config, ConfigError, parse_config


class Run(Config):
    backbone: AnyBackbone


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"name": "iresnet18"}, IResNet(name="iresnet18")),
        ({"name": "iresnet100", "norm": "batch"}, IResNet(name="iresnet100", norm="batch")),
        ({"name": "mobilefacenet"}, MobileFaceNet()),
        ({"name": "small_conv", "widths": [8, 8, 8, 8]}, SmallConv(widths=(8, 8, 8, 8))),
    ],
)
def test_name_picks_the_backbone(fields, expected):
    run = parse_config({"backbone": fields}, Run, "a.yaml")
    assert run.backbone == expected
    assert Run.model_validate(run.model_dump(mode="json")) == run


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"iresnet18.*mobilefacenet.*small_conv"):
        parse_config({"backbone": {"name": "resnet"}}, Run, "a.yaml")
