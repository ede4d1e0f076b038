"""timm's backbones under our own head, against timm itself."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from shards.errors import UserError
from toolkit.models import build
from toolkit.models.batchnorm import grouped_norms
from toolkit.schema import ModelConfig

SHAPE = (64, 50)


@pytest.fixture(autouse=True)
def timm():
    return pytest.importorskip("timm")


def test_the_features_are_timms(timm, tmp_path):
    torch.manual_seed(0)
    theirs = timm.create_model("test_efficientnet", num_classes=0, in_chans=1)
    x = torch.randn(4, 1, *SHAPE)
    theirs(x)  # so that running statistics are not those of the beginning
    theirs.eval()
    weights = tmp_path / "weights.safetensors"
    save_file(theirs.state_dict(), weights)
    config = ModelConfig(name="timm:test_efficientnet", norm_batch=4, pretrained=str(weights))
    ours = build(config, 3, SHAPE)
    assert grouped_norms(ours)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in ours.modules())
    ours(x).sum().backward()
    assert all(p.grad is not None for p in ours.parameters())
    torch.testing.assert_close(ours.eval().backbone(x), theirs(x))
    assert ours(x).shape == (4, 3)


def test_a_transformer_takes_the_shape_of_the_set():
    model = build(ModelConfig(name="timm:test_vit", drop_path=0.1), 3, SHAPE)
    assert model(torch.randn(2, 1, *SHAPE)).shape == (2, 3)
    with torch.device("meta"):  # one that asks timm for nothing dynamic; 50 frames, patches of 16
        plain = build(ModelConfig(name="timm:vit_tiny_patch16_224"), 3, SHAPE)
        assert plain(torch.zeros(2, 1, *SHAPE)).shape == (2, 3)


def test_what_cannot_be_had_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(bytes(50))
    for settings, message in (
        ({"name": "timm:test_vit", "pretrained": str(damaged)}, "no weights for timm:test_vit"),
        ({"name": "timm:vgg11", "drop_path": 0.1}, "model.drop_path: timm:vgg11 has no such"),
        ({"name": "timm:resnet_18"}, "timm:resnet_18: unknown; did you mean"),
        ({"name": "timm:test_vit", "pretrained": True}, "no weights for timm:test_vit .*false"),
        ({"name": "timm:test_vit", "pretrained": "no.pth"}, "expected a .safetensors file"),
        ({"name": "timm:test_vit", "depth": 3}, "no such setting; it has drop_path, dropout"),
    ):
        with pytest.raises(UserError, match=message) as error:
            build(ModelConfig(**settings), 3, SHAPE)
        assert "\n" not in str(error.value)


def test_without_timm(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install .\[timm\]"):
        build(ModelConfig(name="timm:test_vit"), 3, SHAPE)
