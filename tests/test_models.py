"""The network against the published implementation's forward passes, and its own promises."""

from __future__ import annotations

import sys

import pytest
import torch
from helpers import golden_cases, load_case, relative_difference

from ciss.errors import CissError
from ciss.models import (
    NetworkConfig,
    SegmentationNetwork,
    initialise,
    synchronise,
    upsample,
    widened,
    with_norm,
)
from ciss.models.normalisation import ActivatedBatchNorm
from ciss.models.resnet import DEPTHS, Depth

TINY = NetworkConfig("resnet18", width=4, head_channels=8)
TOLERANCE = 2e-5


def tiny(classes=(6, 2), seed=0, **settings):
    network = SegmentationNetwork(
        NetworkConfig.from_dict({**TINY.to_dict(), **settings}), list(classes)
    )
    initialise(network, seed)
    return network


def images(batch=2, height=64, width=48, seed=1):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", golden_cases("11_model"))
def test_forward_pass_matches_published(case, monkeypatch):
    arrays, settings = load_case(case), case["hyperparameters"]
    depth = Depth(tuple(settings["structure"]), settings["bottleneck"])
    monkeypatch.setitem(DEPTHS, "golden", depth)
    config = NetworkConfig(
        "golden",
        settings["output_stride"],
        "bn",
        settings["stem_width"],
        settings["head_channels"],
        settings["pooling_size"],
    )
    network = SegmentationNetwork(config, settings["classes_per_step"])
    state = {
        name.removeprefix("state/"): torch.from_numpy(value)
        for name, value in arrays.items()
        if name.startswith("state/")
    }
    network.load_state_dict(state, strict=True)
    x = torch.from_numpy(arrays["x"])

    compared = set()

    def compare(name, ours):
        if name in arrays:
            difference = relative_difference(ours.detach().numpy(), arrays[name])
            assert difference <= TOLERANCE, (name, difference)
            compared.add(name)

    for mode in ("eval", "train"):
        network.load_state_dict(state)
        output = network.train(mode == "train")(x)
        compare(f"{mode}/sem_logits_small", output.small_logits)
        compare(f"{mode}/logits", output.logits)
        compare(f"{mode}/logits_image0", output.logits[:1])
        compare(f"{mode}/body", output.body)
        compare(f"{mode}/pre_logits", output.pre_logits)
        for stage, attention in enumerate(output.attentions):
            compare(f"{mode}/attention_{stage}", attention)
    for name, value in network.state_dict().items():
        compare(f"after_train/{name}", value)
    expected = {name for name in arrays if name.split("/")[0] in ("eval", "train", "after_train")}
    assert compared == expected, expected - compared


@pytest.mark.parametrize("backbone", ["resnet34", "resnet50"])
@pytest.mark.parametrize("stride", [8, 16])
def test_shapes(backbone, stride):
    network = tiny(backbone=backbone, output_stride=stride).eval()
    output = network(images(1, 64, 48))
    outputs = 32 * (4 if backbone == "resnet50" else 1)
    assert output.logits.shape == (1, 8, 64, 48)
    assert output.small_logits.shape == (1, 8, 64 // stride, 48 // stride)
    assert output.pre_logits.shape == (1, 8, 64 // stride, 48 // stride)
    assert (
        output.body.shape == output.attentions[3].shape == (1, outputs, 64 // stride, 48 // stride)
    )
    assert [attention.shape[1] for attention in output.attentions] == [
        outputs // s for s in (8, 4, 2, 1)
    ]


@pytest.mark.parametrize(
    ("backbone", "count"),
    [
        ("resnet18", 11_176_512),
        ("resnet34", 21_284_672),
        ("resnet50", 23_508_032),
        ("resnet101", 42_500_160),
    ],
)
def test_encoder_has_the_weights_of_the_usual_resnet(backbone, count):
    """Counts of the well-known networks without their ImageNet classifier."""
    with torch.device("meta"):
        network = SegmentationNetwork(NetworkConfig(backbone), [16])
    assert sum(parameter.numel() for parameter in network.body.parameters()) == count


def test_attentions_are_before_the_activation():
    output = tiny().eval()(images())
    assert all((attention < 0).any() for attention in output.attentions)
    assert torch.equal(
        torch.where(output.attentions[3] < 0, 0.01, 1.0) * output.attentions[3], output.body
    )


def test_fused_classifiers_equal_separate_ones():
    network = tiny((6, 2, 1)).eval()
    output = network(images())
    separate = torch.cat([classifier(output.pre_logits) for classifier in network.cls], dim=1)
    assert torch.allclose(output.small_logits, separate, atol=1e-6)
    assert torch.equal(output.logits, upsample(output.small_logits, (64, 48)))


def test_abn_scales_by_magnitude_plus_eps():
    layer = ActivatedBatchNorm(5)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(4, 5, 7, 3)
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    scale = (layer.weight.abs() + 1e-5)[:, None, None]
    expected = (x - mean) / (variance + 1e-5).sqrt() * scale + layer.bias[:, None, None]
    expected = torch.where(expected < 0, 0.01 * expected, expected)
    assert (layer.weight < 0).any()
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_abn_gradients():
    layer = ActivatedBatchNorm(3).double()
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)

    def run(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(run, (x, layer.weight, layer.bias))


def test_state_without_counters_loads():
    network, other = tiny(), tiny(seed=1)
    state = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    other.load_state_dict(state, strict=True)
    assert torch.equal(network.eval()(images()).logits, other.eval()(images()).logits)


def test_initialise_is_reproducible_and_seeded():
    first, again, other = tiny(seed=3), tiny(seed=3), tiny(seed=4)
    again.train()(images())
    initialise(again, 3)
    names = [name for name in first.state_dict() if not name.endswith("num_batches_tracked")]
    assert all(torch.equal(first.state_dict()[name], again.state_dict()[name]) for name in names)
    assert not torch.equal(first.body.mod1.conv1.weight, other.body.mod1.conv1.weight)
    # Neither vanishing nor exploding at the depth of the deepest block.
    assert 0.05 < first.train()(images()).body.std() < 20


def test_widened_keeps_old_outputs_and_leaves_the_old_network_alone():
    network = tiny((6, 2)).eval()
    random_state = torch.get_rng_state()
    wider, again, other = widened(network, 3, 7), widened(network, 3, 7), widened(network, 3, 8)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert network.classes_per_step == (6, 2)
    assert wider.classes_per_step == (6, 2, 3)
    assert wider.n_classes == 11
    assert torch.allclose(wider(images()).logits[:, :8], network(images()).logits, atol=1e-6)
    assert torch.equal(wider.cls[2].weight, again.cls[2].weight)
    assert torch.equal(wider.cls[2].bias, again.cls[2].bias)
    assert not torch.equal(wider.cls[2].weight, other.cls[2].weight)
    bound = 8**-0.5
    assert 0.5 * bound < wider.cls[2].weight.abs().max() <= bound
    with torch.no_grad():
        wider.cls[0].weight.zero_()
    assert network.cls[0].weight.abs().sum() > 0
    with pytest.raises(CissError, match="at least one class"):
        widened(network, 0, 0)


def test_with_norm_keeps_the_values():
    network = tiny()
    for module in network.modules():
        if isinstance(module, ActivatedBatchNorm):
            torch.nn.init.normal_(module.weight)
    expected = network.eval()(images()).logits
    plain = with_norm(network, "bn")
    assert plain.config.norm == "bn"
    assert relative_difference(plain(images()).logits.detach(), expected.detach()) < 1e-5
    back = with_norm(plain, "abn")(images()).logits
    assert relative_difference(back.detach(), expected.detach()) < 1e-5
    with torch.no_grad():
        plain.head.red_bn.weight[2] = -0.1
    with pytest.raises(CissError, match=r"head\.red_bn\.weight has negative"):
        with_norm(plain, "abn")


def test_pooling_window_in_evaluation():
    """A map larger than the window is pooled at each position, a smaller one as a whole."""
    small, large = tiny(pooling=2).head.eval(), tiny(pooling=32).head.eval()
    x = torch.randn(1, 32, 4, 4)
    assert large._pool(x).shape == (1, 32, 1, 1)
    pooled = small._pool(x)
    assert torch.allclose(pooled[..., 1, 2], x[..., 1:3, 2:4].mean((2, 3)), atol=1e-6)
    assert torch.equal(pooled[..., 3], pooled[..., 2])
    assert small.train()._pool(x).shape == (1, 32, 1, 1)


def test_channels_last_stays():
    network = tiny().eval().to(memory_format=torch.channels_last)
    x = images().to(memory_format=torch.channels_last)
    output = network(x)
    assert output.body.is_contiguous(memory_format=torch.channels_last)
    assert output.pre_logits.is_contiguous(memory_format=torch.channels_last)
    reference = tiny().eval()(images())
    assert torch.allclose(output.logits, reference.logits, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "vgg"}, r"backbone is 'vgg'; choose one of resnet18, .*resnet101"),
        ({"output_stride": 32}, "choose one of 8, 16"),
        ({"norm": "gn"}, "choose one of abn, bn, iabn"),
        ({"width": 0}, "positive integer"),
        ({"depth": 50}, "depth does not exist; there are backbone"),
    ],
)
def test_wrong_settings_say_what_is_allowed(settings, message):
    with pytest.raises(CissError, match=message):
        NetworkConfig.from_dict(settings)


def test_config_round_trip():
    config = NetworkConfig("resnet50", 8, "bn", 32, 128, 16)
    assert NetworkConfig.from_dict(config.to_dict()) == config


def test_inplace_abn_absent_is_one_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "inplace_abn", None)
    with pytest.raises(CissError, match=r"no-build-isolation 'ciss\[iabn\]'"):
        tiny(norm="iabn")


def _run_synchronised(rank, folder):
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    network = synchronise(tiny().train())
    # Three images here, one there: shares of unequal size.
    x = images(4)[:3] if rank == 0 else images(4)[3:]
    output = network(x)
    output.logits.square().sum().backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    torch.distributed.all_reduce(gradients)
    torch.save((output.logits.detach(), gradients, network.state_dict()), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_synchronised_statistics_equal_one_process(tmp_path):
    torch.multiprocessing.spawn(_run_synchronised, (str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    network = tiny().train()
    logits = network(images(4)).logits
    logits.square().sum().backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    together = torch.cat([results[0][0], results[1][0]])
    assert relative_difference(together, logits.detach()) < 1e-4
    assert relative_difference(results[0][1], gradients) < 1e-3
    for name, value in network.state_dict().items():
        assert torch.equal(results[0][2][name], results[1][2][name])
        assert torch.allclose(results[0][2][name], value, rtol=1e-4, atol=1e-5), name


def test_synchronise_alone_changes_nothing():
    network = synchronise(tiny())
    assert not any(getattr(module, "synchronised", False) for module in network.modules())


@pytest.mark.parametrize(("stride", "rates"), [(16, (6, 12, 18)), (8, (12, 24, 32))])
def test_rates_are_the_published_ones(stride: int, rates: tuple[int, ...]) -> None:
    """On the small maps of the other tests all of them look outside."""
    head = SegmentationNetwork(
        NetworkConfig("resnet18", stride, width=2, head_channels=2), [2]
    ).head
    assert [conv.dilation[0] for conv in head.map_convs] == [1, *rates]
    maps = torch.randn(1, head.map_convs[0].in_channels, 3, 4)
    assert {conv(maps).shape for conv in head.map_convs} == {(1, 2, 3, 4)}
