"""Attribution against the published one, Captum, and by hand."""

from __future__ import annotations

import pytest
import torch
from helpers import golden_cases, load_case, relative_difference

from ciss.attribution import (
    POOLINGS,
    Attribution,
    accumulate,
    attribute,
    attribution_maps,
    channel_count,
    channel_mask,
    closed_form,
    load_attribution,
    save_attribution,
    scores,
    shrink_labels,
    upsampling_adjoint,
)
from ciss.checkpoint import save_tensors
from ciss.errors import CissError
from ciss.models import NetworkConfig, SegmentationNetwork, initialise
from ciss.models.network import upsample

TOLERANCE = 2e-5


def small_network(norm="abn", seed=0):
    network = SegmentationNetwork(NetworkConfig("resnet18", 16, norm, 4, 16), [4])
    initialise(network, seed)
    # As in a trained network: without shifts a zero image would give zeros everywhere.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias") and not name.startswith("cls"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return network


def random_batches(sizes=(2, 3), new=(4, 5), height=48, width=40):
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        labels = torch.randint(0, max(new) + 1, (size, 3, 2), generator=generator)
        labels = labels.repeat_interleave(height // 3, 1).repeat_interleave(width // 2, 2)
        yield torch.randn(size, 3, height, width, generator=generator), labels


def golden_attribution(case, arrays):
    """The golden case's attribution, from its stored activations, in two batches."""
    labels = torch.from_numpy(arrays["labels"]).long()
    if "act_delta" in arrays:
        x, zero = torch.from_numpy(arrays["act_delta"]), torch.zeros(1)
    else:
        x, zero = torch.from_numpy(arrays["act_x"]), torch.from_numpy(arrays["act_zero"])
    maps = closed_form(x, zero, torch.from_numpy(arrays["w_bg"]), labels.shape[1:])
    attribution, classes = None, case["hyperparameters"].get("new_classes")
    if classes:
        for rows in (slice(0, 3), slice(3, None)):
            if len(maps[rows]):
                attribution = accumulate(attribution, maps[rows], labels[rows], classes)
    return maps, labels, attribution


@pytest.mark.parametrize("case", golden_cases("5_attribution"))
def test_maps_match_published(case):
    arrays = load_case(case)
    maps, labels, attribution = golden_attribution(case, arrays)
    adjoint = upsampling_adjoint(tuple(maps.shape[2:]), tuple(labels.shape[1:]))
    assert relative_difference(adjoint.numpy(), arrays["upsample_adjoint"][0, 0]) <= TOLERANCE
    used = arrays.get("joint/used", slice(None))
    if "attribution_raw" in arrays:
        ours = maps[used].numpy()
        assert relative_difference(ours, arrays["attribution_raw"]) <= TOLERANCE
    if "joint/used" not in arrays:
        return
    small = shrink_labels(labels, maps.shape[2:])
    shown = torch.isin(small, torch.tensor(case["hyperparameters"]["new_classes"]))
    assert shown.any((1, 2)).nonzero().flatten().tolist() == used.tolist()
    assert torch.equal(shown[used], torch.from_numpy(arrays["joint/mask"]))
    assert attribution.joint_count == len(used)
    assert len(labels) - attribution.joint_count == arrays["joint/missed"]


def assert_same_choice(ours, theirs, score, fraction):
    """Equal masks, channels whose score ties with the last chosen one left out (NOTES A18)."""
    count = channel_count(fraction, len(score))
    threshold = score.sort(descending=True).values[count - 1]
    clear = (score - threshold).abs() > TOLERANCE * score.abs().max()
    assert ours.sum() == count
    assert torch.equal(ours[clear], theirs[clear])
    assert clear.any()


@pytest.mark.parametrize(
    "case", [c for c in golden_cases("5_attribution") if "noninteger" not in str(c.id)]
)
def test_scores_and_masks_match_published(case):
    arrays = load_case(case)
    attribution = golden_attribution(case, arrays)[2]
    for pooling in POOLINGS:
        ours = scores(attribution, pooling, "joint")
        theirs = torch.from_numpy(arrays[f"joint/score_{pooling}"])
        assert relative_difference(ours[0].numpy(), theirs.numpy()) <= TOLERANCE, pooling
        for percent in (10, 25, 50, 75):
            mask = torch.from_numpy(arrays[f"joint/top{percent}_{pooling}"])
            ours_mask = channel_mask(ours, percent / 100)[0]
            assert_same_choice(ours_mask, mask, theirs, percent / 100)

    has_images = torch.from_numpy(arrays["class_clean/has_images"])
    assert torch.equal(attribution.count > 0, has_images)
    if not has_images.all():
        with pytest.raises(CissError, match="no image shows class"):
            scores(attribution, grouping="per_class")
    shown = Attribution(
        tuple(torch.tensor(attribution.new_classes)[has_images].tolist()),
        attribution.sums[has_images],
        attribution.count[has_images],
        attribution.joint_count,
        attribution.max_sums[has_images],
        attribution.joint_max_sum,
    )
    ours = scores(shown, "max_after_mean", "per_class")
    theirs = torch.from_numpy(arrays["class_clean/score"])[has_images]
    for row in range(len(ours)):
        assert relative_difference(ours[row].numpy(), theirs[row].numpy()) <= TOLERANCE
        for percent in (10, 25, 50, 75):
            mask = torch.from_numpy(arrays[f"class_clean/top{percent}"])[has_images][row]
            ours_mask = channel_mask(ours, percent / 100)[row]
            assert_same_choice(ours_mask, mask, theirs[row], percent / 100)


def test_closed_form_equals_captum(capsys):
    network = small_network()
    ours = attribute(network, random_batches(), [4, 5])
    theirs = attribute(network, random_batches(), [4, 5], method="captum", n_steps=20)
    difference = relative_difference(ours.sums.numpy(), theirs.sums.numpy())
    with capsys.disabled():
        print(f"\nclosed form and captum differ by {difference:.1e} of the maximum")
    assert difference < 1e-5
    assert torch.equal(ours.count, theirs.count)
    for pooling in POOLINGS:
        for grouping in ("joint", "per_class"):
            ours_scores, theirs_scores = (scores(a, pooling, grouping) for a in (ours, theirs))
            for fraction in (0.1, 0.25, 0.5):
                for row, (mine, reference) in enumerate(
                    zip(
                        channel_mask(ours_scores, fraction),
                        channel_mask(theirs_scores, fraction),
                        strict=True,
                    )
                ):
                    assert_same_choice(mine, reference, theirs_scores[row], fraction)


@pytest.mark.parametrize("size", [(48, 40), (33, 50), (32, 32)])
def test_attributions_add_up_to_what_they_explain(size):
    """Integrated gradients are complete, and their integral can be taken step by step."""
    network = small_network().double().eval()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)

    def background(pre_logits):
        return upsample(network.cls[0](pre_logits), size)[:, 0].sum(dim=(1, 2))

    with torch.no_grad():
        x, zero = (network.features(i).pre_logits for i in (images, torch.zeros_like(images[:1])))
        ours = attribution_maps(network)(images)
        total = background(x) - background(zero)
    assert zero.abs().max() > 0.1
    torch.testing.assert_close(ours.sum(dim=(1, 2, 3)).double(), total, rtol=1e-4, atol=1e-3)
    assert ours.min() < 0 < ours.max()
    steps, integral = 8, torch.zeros_like(x)
    for step in range(steps):
        between = (zero + (x - zero) * (step + 0.5) / steps).requires_grad_()
        (gradient,) = torch.autograd.grad(background(between).sum(), between)
        integral += gradient * (x - zero) / steps
    assert relative_difference(ours.numpy(), integral.numpy()) < 1e-6


def test_other_captum_attributions_run():
    """Gradient × activation is the closed form without its baseline."""
    network = small_network().eval()
    images, labels = next(random_batches())
    method = "captum:LayerGradientXActivation"
    found = attribute(network, [(images, labels)], [4, 5], method=method)
    x = network.features(images).pre_logits.detach()
    maps = closed_form(x, torch.zeros(1), network.cls[0].weight[0].detach(), images.shape[2:])
    expected = accumulate(None, maps, labels, [4, 5])
    assert relative_difference(found.sums.numpy(), expected.sums.numpy()) < 1e-5


def test_unknown_methods():
    for method, message in (("saliency", "closed_form, captum"), ("captum:LayerX", "LayerIntegr")):
        with pytest.raises(CissError, match=message):
            attribute(small_network(), random_batches(), [4], method=method)


def test_by_hand():
    """Two images of one channel pair, 2 × 2 maps; class 7 in both, class 8 in the second."""
    maps = torch.tensor(
        [
            [[[1.0, 2.0], [3.0, 4.0]], [[-1.0, -2.0], [-3.0, -4.0]]],
            [[[8.0, 0.0], [0.0, 4.0]], [[5.0, 6.0], [7.0, -8.0]]],
        ]
    )
    labels = torch.tensor([[[7, 0], [255, 7]], [[8, 0], [7, 7]]])
    found = accumulate(None, maps, labels, [7, 8])
    assert found.count.tolist() == [2, 1]
    assert found.joint_count == 2
    assert found.sums.dtype == found.max_sums.dtype == found.joint_max_sum.dtype == torch.float64
    assert found.sums[0].tolist() == [[[1, 0], [0, 8]], [[-1, 0], [7, -12]]]
    assert found.sums[1].tolist() == [[[8, 0], [0, 0]], [[5, 0], [0, 0]]]
    assert found.max_sums.tolist() == [[4 + 4, 0 + 7], [8, 5]]
    assert found.joint_max_sum.tolist() == [4 + 8, 0 + 7]
    assert scores(found, "max_after_mean").tolist() == [[4.5, 3.5]]
    assert scores(found, "mean_after_max").tolist() == [[6.0, 3.5]]
    assert scores(found, "avg_after_mean").tolist() == [[17 / 8, -1 / 8]]
    assert scores(found, "max_after_mean", "per_class").tolist() == [[4.0, 3.5], [8.0, 5.0]]


def test_batches_do_not_matter():
    network = small_network()
    images, labels = (torch.cat(parts) for parts in zip(*random_batches(), strict=True))
    whole = attribute(network, [(images, labels)], [4, 5])
    single = attribute(network, zip(images.split(1), labels.split(1), strict=True), [4, 5])
    assert whole.count.tolist() == single.count.tolist()
    assert whole.sums.dtype == whole.max_sums.dtype == whole.joint_max_sum.dtype == torch.float32
    for name in ("sums", "max_sums", "joint_max_sum"):
        assert relative_difference(getattr(whole, name), getattr(single, name)) < 1e-5


def test_network_is_left_as_it_was():
    network = small_network().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for method in ("closed_form", "captum"):
        attribute(network, random_batches((1,)), [4, 5], method=method, n_steps=3)
        assert network.training
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
        assert all(parameter.grad is None for parameter in network.parameters())


def test_no_image_with_a_new_class():
    with pytest.raises(CissError, match="no image shows any of the new classes 8, 9"):
        attribute(small_network(), random_batches(), [8, 9])
    with pytest.raises(CissError, match="no image shows any"):
        attribute(small_network(), [], [4])
    found = attribute(small_network(), random_batches(), [4, 9])
    assert scores(found, grouping="joint").shape == (1, 16)
    with pytest.raises(CissError, match=r"no image shows class 9 .*'joint'"):
        scores(found, grouping="per_class")


def test_images_of_two_sizes():
    batches = [*random_batches((1,)), *random_batches((1,), height=96)]
    with pytest.raises(CissError, match="cropped to one size"):
        attribute(small_network(), batches, [4])


def test_shrinking_takes_the_floor_pixel():
    labels = torch.arange(7 * 5).reshape(1, 7, 5)
    assert shrink_labels(labels, (3, 2)).tolist() == [[[0, 2], [10, 12], [20, 22]]]


@pytest.mark.parametrize(
    ("fraction", "count"),
    [(0.1, 26), (0.25, 64), (0.5, 128), (0.75, 192), (1.0, 256), (1e-4, 1), (2, 2), (100, 100)],
)
def test_channel_count(fraction, count):
    assert channel_count(fraction, 256) == count


def test_a_share_is_rounded_to_the_nearest_count_a_half_up():
    assert [channel_count(share, 10) for share in (0.24, 0.25, 0.26, 0.34, 0.35)] == [2, 3, 3, 3, 4]


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5, 257, float("nan")])
def test_channel_count_refuses(fraction):
    with pytest.raises(CissError, match="does not exist"):
        channel_count(fraction, 256)


def test_ties_go_to_the_lower_channel():
    found = channel_mask(torch.tensor([[0.0, 1.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]]), 0.5)
    assert found.tolist() == [[True, True, False, False], [True, True, False, False]]


def test_round_trip(tmp_path):
    found = attribute(small_network(), random_batches(), [4, 5])
    save_attribution(tmp_path / "a", found, {"method": "closed_form"})
    loaded = load_attribution(tmp_path / "a")
    assert loaded.new_classes == (4, 5)
    assert loaded.joint_count == found.joint_count
    for name in ("sums", "count", "max_sums", "joint_max_sum"):
        assert torch.equal(getattr(loaded, name), getattr(found, name))
    save_tensors(tmp_path / "b", {"x": torch.zeros(1)}, {})
    with pytest.raises(CissError, match="not 'attribution'"):
        load_attribution(tmp_path / "b")


def test_unknown_pooling_and_grouping():
    found = attribute(small_network(), random_batches(), [4, 5])
    with pytest.raises(CissError, match="pooling 'max' is unknown; choose one of max_after_mean"):
        scores(found, "max")
    with pytest.raises(CissError, match="grouping 'all' is unknown; choose one of joint"):
        scores(found, grouping="all")
