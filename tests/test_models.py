"""Models: sizes, golden losses, what they export to, what they draw."""

import io
import logging

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from processes import on_ranks
from runs import configured
from safetensors.torch import load_file

from shards.errors import UserError
from toolkit.loop import fit
from toolkit.models import REGISTRY, build, dropout
from toolkit.models.blocks import area_weights
from toolkit.models.dropout import Dropout
from toolkit.models.vit import drop_patches, drop_path
from toolkit.schema import ModelConfig

PARAMETERS = {  # for 2 classes and for 50, of 128 bands x 250 frames
    "cnn_tiny": (23_538, 26_658),
    "cnn_small": (4_878_498, 4_895_442),
    "cnn_medium": (10_546_322, 10_613_954),
    "cnn_large": (26_857_410, 26_955_762),
    "cnn_conv1d": (248_994, 255_186),
    "cnn_spectrogram": (2_551_906, 2_558_098),
    "cnn_vgg": (1_173_666, 1_186_002),
    "crnn": (783_843, 796_179),
    "vit_small": (2_744_962, 2_754_226),
    "vit_medium": (4_839_426, 4_851_762),
    "vit_large": (10_797_826, 10_816_306),
}
PROMISED = {  # millions
    "cnn_small": (4.5, 5.5), "cnn_medium": (10, 12), "cnn_large": (25, 30),
    "vit_small": (2, 3), "vit_medium": (4, 6), "vit_large": (10, 12),
}  # fmt: skip
GOLDEN = {  # the loss after three steps
    "cnn_tiny": 1.09741, "cnn_small": 0.85465, "cnn_medium": 0.35945, "cnn_large": 0.24057,
    "cnn_conv1d": 1.02265, "cnn_spectrogram": 0.91982, "cnn_vgg": 0.66564, "crnn": 1.08232,
    "vit_small": 0.13610, "vit_medium": 0.09324, "vit_large": 0.05391,
}  # fmt: skip
FEW = {"filters": [8, 8, 16, 16], "blocks": [1, 1, 1, 1]}
NARROW = {"dim": 32, "depth": 2, "heads": 2}
SMALL = {  # a quick one of every kind
    "tiny": ModelConfig(name="cnn_tiny", norm_batch=2, dropout=0.1),
    "basic": ModelConfig(name="cnn_small", norm_batch=2, **FEW),
    "bottleneck": ModelConfig(name="cnn_large", norm_batch=2, **FEW),
    "conv1d": ModelConfig(name="cnn_conv1d", norm_batch=2, dropout=0.1, filters=[8, 8, 16]),
    "spectrogram": ModelConfig(name="cnn_spectrogram", norm_batch=2, dropout=0.1),
    "vgg": ModelConfig(name="cnn_vgg", norm_batch=2, dropout=0.1, filters=[8, 8, 16, 16]),
    "crnn": ModelConfig(name="crnn", norm_batch=2, dropout=0.1, filters=[8, 8, 16], dim=16),
    "vit": ModelConfig(
        name="vit_small", dropout=0.1, embed_dropout=0.1, patch_dropout=0.3, drop_path=0.5,
        **NARROW,
    ),
    "vit_overlap": ModelConfig(name="vit_small", patch=[16, 8], overlap=[6, 0], **NARROW),
    "vit_stem": ModelConfig(name="vit_small", norm_batch=2, conv_stem=True, patch=8, **NARROW),
}  # fmt: skip


def count(name, n_classes):
    with torch.device("meta"):
        model = build(ModelConfig(name=name), n_classes, (128, 250))
    return sum(p.numel() for p in model.parameters())


def test_parameter_counts():
    assert PARAMETERS.keys() == REGISTRY.keys()
    for name, expected in PARAMETERS.items():
        assert (count(name, 2), count(name, 50)) == expected, name
    for name, (least, most) in PROMISED.items():
        assert least * 1e6 < PARAMETERS[name][0] < PARAMETERS[name][1] < most * 1e6
    # By hand: convolutions, two numbers a channel, and the linear layer.
    assert PARAMETERS["cnn_tiny"][0] == 9 * (16 + 16 * 32 + 32 * 64) + 2 * (16 + 32 + 64) + 2 * 65


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_golden_loss(name):
    torch.manual_seed(0)
    x, y = torch.randn(8, 1, 32, 48), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    model = build(ModelConfig(name=name, norm_batch=4), 3, (32, 48))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert F.cross_entropy(model(x), y).item() == pytest.approx(GOLDEN[name], rel=5e-3)


@pytest.mark.parametrize("kind", SMALL)
def test_logits_and_gradients(kind):
    torch.manual_seed(0)
    model = build(SMALL[kind], 5, (64, 50))
    for bands, frames in ((64, 50), (40, 77), (64, 50)):
        x = torch.randn(4, 1, bands, frames)
        torch.manual_seed(1)
        logits = model(x)
        assert logits.shape == (4, 5)
    torch.manual_seed(1)  # what is drawn is a function of the seed alone
    torch.testing.assert_close(model(x), logits)
    with torch.autocast("cpu", torch.bfloat16):
        F.cross_entropy(model(x).float(), torch.tensor([0, 1, 2, 3])).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
    model.eval()
    alone = torch.cat([model(one[None]) for one in x])  # whatever an evaluation pads a batch with
    torch.testing.assert_close(model(x), alone, atol=1e-5, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(x).float(), alone, atol=0.05, rtol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SMALL)
def test_compiles_in_one_piece(kind):
    model = build(SMALL[kind], 5, (64, 50))
    x = torch.randn(4, 1, 64, 50)
    torch._dynamo.reset()
    whole = kind != "crnn"  # torch runs an LSTM beside the compiled code
    compiled = torch.compile(model, backend="eager", fullgraph=whole, dynamic=False)
    torch.manual_seed(0)
    logits = compiled(x)
    torch.manual_seed(0)
    torch.testing.assert_close(logits, model(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    ["vit", *(pytest.param(k, marks=pytest.mark.slow) for k in SMALL if k != "vit")],
)
def test_onnx_answers_alike(kind):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    model = build(SMALL[kind], 5, (64, 50)).eval()
    x = torch.randn(4, 1, 64, 50)
    batches = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(model, (x,), dynamic_shapes=batches)
    file = io.BytesIO()
    torch.onnx.export(exported, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file.getvalue())
    name = session.get_inputs()[0].name
    for part in (x, x[:3]):
        (found,) = session.run(None, {name: part.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), model(part), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"name": "cnn_smal"}, "did you mean cnn_small"),
        ({"name": "cnn_small", "patch": 16}, "model.patch=16: cnn_small has no such setting"),
        ({"name": "vit_small", "blocks": [1]}, "no such setting; it has conv_stem, depth"),
        ({"name": "vit_small", "pretrained": True}, "model.pretrained=True: vit_small has no such"),
        ({"name": "cnn_small", "blocks": [2, 2]}, r"model.blocks=\[2, 2\]: expected 4 numbers"),
        ({"name": "cnn_tiny", "filters": [8, 0, 8]}, "expected 3 numbers, each at least 1"),
        ({"name": "vit_small", "dim": 100}, "model.dim=100: not a multiple of model.heads=3"),
        ({"name": "vit_small", "overlap": 16}, "model.overlap=16: at least one cell below"),
        ({"name": "vit_small", "patch": [16]}, r"model.patch=\[16\]: one number or \[bands,"),
        ({"name": "vit_small", "patch": 12, "conv_stem": True}, "takes powers of two"),
        ({"name": "vit_small", "overlap": 2, "conv_stem": True}, "which overlaps"),
    ],
)
def test_settings_that_are_off(settings, message):
    with pytest.raises(UserError, match=message) as error:
        build(ModelConfig(**settings), 2, (128, 250))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_the_smallest_input(name):
    config = ModelConfig(name=name, norm_batch=2)
    kind = getattr(REGISTRY[name], "func", REGISTRY[name])
    bands, frames = kind.smallest
    with torch.device("meta"):
        assert build(config, 2, (bands, frames)).eval()(torch.zeros(1, 1, bands, frames)).shape
    if bands > 1:
        with pytest.raises(UserError, match=f"at least {bands} bands x {frames} frames"):
            build(config, 2, (bands - 1, frames))


def test_patches():
    model = build(ModelConfig(name="vit_small", patch=[16, 8], **NARROW), 2, (32, 40))
    x = torch.randn(3, 1, 32, 40)
    patches = rearrange(x, "b 1 (h p) (w q) -> b h w (p q)", p=16, q=8)
    expected = rearrange(model.embed.project(patches), "b h w d -> b d h w")
    torch.testing.assert_close(model.embed(x), expected)
    assert model.pos_embed.shape == (32, 2, 5)
    assert model.grid((33, 41)) == (3, 6)  # what does not fill a patch is padded
    padded = F.pad(x[..., :37], (0, 3))
    torch.testing.assert_close(model.eval()(x[..., :37]), model(padded))
    overlapping = build(ModelConfig(name="vit_small", overlap=6, **NARROW), 2, (36, 46))
    assert overlapping.grid((36, 46)) == (3, 4) and overlapping.grid((37, 47)) == (4, 5)


def test_what_is_dropped():
    torch.manual_seed(0)
    x = torch.arange(1.0, 25).repeat(50, 1)[..., None].repeat(1, 1, 3)
    kept = drop_patches(x, 0.25)
    assert kept.shape == (50, 18, 3)
    assert all(len(set(row.tolist())) == 18 for row in kept[..., 0])  # whole patches, each once
    assert len({tuple(row.tolist()) for row in kept[..., 0]}) == 50  # others of each sample
    dropped = drop_path(torch.ones(4000, 2, 3), 0.25)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (dropped == dropped[:, :1, :1]).all()  # whole samples
    assert dropped.mean() == pytest.approx(1, abs=0.05)
    ones = Dropout(0.25)(torch.ones(4000, 6))
    assert ones.unique().tolist() == pytest.approx([0, 4 / 3])
    assert ones.mean() == pytest.approx(1, abs=0.05)


def test_what_is_dropped_is_compiled_to_one_graph():
    def forward():
        torch.set_num_threads(1)  # a fork has none of its parent's
        drops = {"dropout": 0.1, "embed_dropout": 0.1, "patch_dropout": 0.5, "drop_path": 0.5}
        model = build(ModelConfig(name="vit_small", **drops, **NARROW), 3, (16, 16))
        dropout.seed([1, 2], torch.device("cpu"))
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        return compiled(torch.zeros(4, 1, 16, 16)).shape

    assert on_ranks(1, forward) == [(4, 3)]


def test_areas_are_those_of_adaptive_pooling():
    x = torch.randn(2, 12)
    for size in (1, 3, 4, 12):
        torch.testing.assert_close(
            x @ area_weights(12, size, x.device), F.adaptive_avg_pool1d(x, size)
        )
    torch.testing.assert_close(area_weights(7, 4, x.device).sum(0), torch.ones(4))
    torch.testing.assert_close(area_weights(2, 4, x.device).sum(1), torch.full((2,), 2.0))


def test_attention_sums_to_one():
    model = build(SMALL["crnn"], 5, (64, 50)).eval()
    attention = model.attention(torch.randn(3, 1, 64, 50))
    assert attention.shape == (3, 6) and (attention > 0).all()
    torch.testing.assert_close(attention.sum(1), torch.ones(3))


@torch.no_grad()
def test_initialisation():
    torch.manual_seed(0)
    cnn, vit = (build(ModelConfig(name=n), 200, (64, 50)) for n in ("cnn_small", "vit_small"))
    wide = cnn.stages[-1].branch[3].weight  # He: the variance is 2 over the outputs' fan
    assert wide.std() == pytest.approx((2 / (9 * 352)) ** 0.5, rel=0.02)
    assert cnn.head[1].weight.std() == pytest.approx(0.01, rel=0.05)
    assert not any(block.branch[-1].weight.any() for block in cnn.stages)  # begins as its shortcut
    weight = vit.blocks[0].qkv.weight
    assert weight.std() == pytest.approx(0.0176, rel=0.02) and weight.abs().max() <= 0.04
    lstm = build(SMALL["crnn"], 5, (64, 50)).lstm
    recurrent = lstm.weight_hh_l0[:16]
    torch.testing.assert_close(recurrent @ recurrent.T, torch.eye(16), atol=1e-5, rtol=0)
    assert lstm.bias_ih_l0.tolist() == [0.0] * 16 + [1.0] * 16 + [0.0] * 32


@pytest.mark.usefixtures("no_pictures")
def test_a_vit_draws_the_same_on_two_processes(tone_set, tmp_path):
    model = {"name": "vit_small", "dropout": 0.1, "patch_dropout": 0.3, "drop_path": 0.3}
    model |= {"conv_stem": True, **NARROW}
    train = {"max_steps": 3, "microbatch": 4, "precision": "no"}

    def weights(world_size):
        config = configured(tone_set, tmp_path / f"on{world_size}", model=model, train=train)
        results = on_ranks(world_size, lambda: fit(config))
        assert "recording" in results[0], results
        return load_file(config.folder() / "best.safetensors")

    one, two = weights(1), weights(2)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-4, msg=name)
