"""Losses at full resolution, block by block, against the same on the whole logits."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ciss import losses, pixelwise
from ciss.models.network import upsample
from ciss.pixelwise import Upsampled, interpolation, pixel_maps, pixel_means, predict

SIZE = (24, 20)


@pytest.fixture(params=[1, 130, 2000, 10**9], ids=lambda values: f"{values}_values")
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """One row at a time, a few rows, whole images, the whole batch."""
    monkeypatch.setattr(pixelwise, "BLOCK", {"cpu": request.param})
    values: int = request.param
    return values


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randint(0, 6, (3, *SIZE), generator=generator)
    return torch.where(drawn == 5, 255, drawn)


def rows_and_images() -> Iterator[tuple[slice, slice]]:
    yield slice(0, 3), slice(0, 24)
    yield slice(1, 2), slice(5, 7)
    yield slice(2, 3), slice(23, 24)


@pytest.mark.parametrize("small", [(6, 5), (5, 7), (24, 20), (24, 5), (6, 20), (1, 1), (30, 20)])
def test_blocks_are_parts_of_the_upsampled_logits(small: tuple[int, int]) -> None:
    maps = draw(3, 4, *small)
    whole = upsample(maps, SIZE)
    for images, rows in rows_and_images():
        ours = Upsampled(maps, SIZE).block(images, rows)
        torch.testing.assert_close(ours, whole[images, :, rows])


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_upsampled_in_float32(autocast: bool) -> None:
    maps, slope = draw(1, 4, 6, 5).to(torch.bfloat16), draw(1, 4, *SIZE).float()
    place, gradient = (slice(0, 1), slice(0, 24)), torch.zeros(1, 4, 6, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        ours = Upsampled(maps, SIZE).block(*place)
        Upsampled(maps, SIZE).add_adjoint(gradient, slope, *place)
    assert ours.dtype == torch.float32
    full = maps.float().requires_grad_()
    torch.testing.assert_close(ours, upsample(full, SIZE).detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(upsample(full, SIZE), full, slope)[0])


def test_interpolation_shares_every_position_among_its_neighbours() -> None:
    matrix = interpolation(5, 24, torch.float64, torch.device("cpu"))
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(24, dtype=torch.float64))
    assert ((matrix > 0).sum(dim=1) <= 2).all()


@pytest.mark.parametrize("small", [(6, 5), SIZE, (24, 5)])
def test_means_and_gradients_are_those_of_the_whole(block: int, small: tuple[int, int]) -> None:
    maps, teacher, truth = draw(3, 5, *small).requires_grad_(), draw(3, 3, 6, 5, seed=1), labels()
    scale = draw(3, seed=2).abs()

    def per_pixel(rows: Tensor, ours: Tensor, its: Tensor, factor: Tensor) -> dict[str, Tensor]:
        return {
            "classification": losses.cross_entropy(ours, rows) * factor,
            "distillation": 3 * losses.unbiased_distillation(ours, its),
        }

    def weighted(terms: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        value = terms["distillation"] - 2 * terms["classification"]
        return value, torch.autograd.grad(value, maps)[0]

    factors = scale[:, None, None].expand(-1, SIZE[0], 1)
    ours = pixel_means(per_pixel, truth, Upsampled(maps, SIZE), Upsampled(teacher, SIZE), factors)
    whole = per_pixel(truth, upsample(maps, SIZE), upsample(teacher, SIZE), factors)
    expected = {name: values.mean() for name, values in whole.items()}
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value)
    torch.testing.assert_close(weighted(ours), weighted(expected))


def test_blocks_are_made_once_where_the_sum_is_differentiated(block: int) -> None:
    maps, made = draw(3, 5, 6, 5).requires_grad_(), []

    def per_pixel(rows: Tensor, ours: Tensor, its: None) -> dict[str, Tensor]:
        made.append(ours.numel())
        return {"a": losses.cross_entropy(ours, rows), "b": ours.square().mean(dim=1)}

    def gradient(weight: float) -> tuple[Tensor, int]:
        made.clear()
        terms = pixel_means(per_pixel, labels(), Upsampled(maps, SIZE))
        total = torch.stack(list(terms.values())) if weight == 1 else terms["a"] + 2 * terms["b"]
        return torch.autograd.grad(3 * total.sum(), maps)[0], sum(made)

    pixels = 3 * 5 * SIZE[0] * SIZE[1]
    (once, values), (other, again) = gradient(1), gradient(2)
    assert (values, again) == (pixels, 2 * pixels)
    whole = upsample(maps, SIZE)
    terms = [losses.cross_entropy(whole, labels()).mean(), whole.square().mean()]
    torch.testing.assert_close(
        once, torch.autograd.grad(3 * sum(terms), maps, retain_graph=True)[0]
    )
    torch.testing.assert_close(other, torch.autograd.grad(3 * (terms[0] + 2 * terms[1]), maps)[0])


def test_nothing_of_full_resolution_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixelwise, "BLOCK", {"cpu": 100})
    maps = draw(3, 5, 6, 5).requires_grad_()
    saved: list[int] = []
    alive: list[weakref.ref[Tensor]] = []

    def per_pixel(rows: Tensor, ours: Tensor, its: None) -> dict[str, Tensor]:
        alive.append(weakref.ref(ours))
        return {"a": losses.cross_entropy(ours, rows)}

    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        loss = pixel_means(per_pixel, labels(), Upsampled(maps, SIZE))["a"]
    assert loss.requires_grad
    assert len(alive) == 3 * SIZE[0]
    assert not any(block() is not None for block in alive)
    assert max(saved) <= maps.numel()


def test_without_a_gradient_only_means_are_computed() -> None:
    maps = draw(3, 5, 6, 5).requires_grad_()
    with torch.no_grad():
        terms = pixel_means(
            lambda rows, ours, its: {"a": losses.cross_entropy(ours, rows)},
            labels(),
            Upsampled(maps, SIZE),
        )
    assert not terms["a"].requires_grad
    expected = losses.cross_entropy(upsample(maps, SIZE), labels()).mean()
    torch.testing.assert_close(terms["a"], expected.detach())


@pytest.mark.parametrize("which", ["closure", "other", "teacher"])
def test_a_gradient_that_would_be_lost_is_refused(which: str) -> None:
    student, teacher = (Upsampled(draw(3, 5, 6, 5), SIZE) for _ in range(2))
    factor, other = draw(1), draw(3, *SIZE)

    def means() -> Tensor:
        return pixel_means(
            lambda rows, ours, its, more: {"a": losses.distillation(ours, its) * factor * more},
            labels(),
            student,
            teacher,
            other,
        )["a"]

    student.maps.requires_grad_()
    assert means().requires_grad
    {"closure": factor, "other": other, "teacher": teacher.maps}[which].requires_grad_()
    with pytest.raises(RuntimeError, match="beside the student's logits"):
        means()
    with torch.no_grad():
        assert means().isfinite()


def test_blocks_without_the_pixels_that_a_function_looks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There it may return a constant; what it uses elsewhere is looked at elsewhere."""
    monkeypatch.setattr(pixelwise, "BLOCK", {"cpu": 100})
    maps, factor, truth = draw(3, 5, 6, 5).requires_grad_(), torch.ones(()), labels()
    truth[:, :20] = 255

    def per_pixel(rows: Tensor, ours: Tensor, its: None) -> dict[str, Tensor]:
        if (rows == 255).all():
            return {"a": torch.zeros(rows.shape, dtype=ours.dtype)}
        return {"a": losses.cross_entropy(ours, rows) * factor}

    ours = pixel_means(per_pixel, truth, Upsampled(maps, SIZE))["a"]
    whole = losses.cross_entropy(upsample(maps, SIZE), truth).mean()
    torch.testing.assert_close(ours, whole)
    torch.testing.assert_close(
        torch.autograd.grad(ours, maps)[0], torch.autograd.grad(whole, maps)[0]
    )
    factor.requires_grad_()
    with pytest.raises(RuntimeError, match="beside the student's logits"):
        pixel_means(per_pixel, truth, Upsampled(maps, SIZE))


def test_means_can_be_weighted_in_place() -> None:
    maps = draw(3, 5, 6, 5).requires_grad_()
    terms = pixel_means(
        lambda rows, ours, its: {"a": losses.cross_entropy(ours, rows), "b": ours.mean(dim=1)},
        labels(),
        Upsampled(maps, SIZE),
    )
    expected = torch.autograd.grad(2 * terms["a"] + terms["b"], maps, retain_graph=True)[0]
    terms["a"] *= 2
    torch.testing.assert_close(torch.autograd.grad(terms["a"] + terms["b"], maps)[0], expected)


def test_half_precision_adds_its_gradient_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded once, and not for each block of rows."""
    monkeypatch.setattr(pixelwise, "BLOCK", {"cpu": 100})
    half = draw(3, 5, 6, 5).bfloat16()
    gradients = []
    for maps in (half.requires_grad_(), half.detach().float().requires_grad_()):
        terms = pixel_means(
            lambda rows, ours, its: {"a": losses.cross_entropy(ours, rows)},
            labels(),
            Upsampled(maps, SIZE),
        )
        gradients.append(torch.autograd.grad(1e4 * terms["a"], maps)[0])
    assert gradients[0].dtype == torch.bfloat16
    assert torch.equal(gradients[0], gradients[1].bfloat16())


def test_largest_channel_is_the_first_of_equal_ones() -> None:
    values = torch.randint(0, 4, (2, 9, 5, 6), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(pixelwise.largest_channel(values), values.argmax(dim=1))
    assert pixelwise.largest_channel(torch.full((1, 3, 1), float("nan"))).item() in range(3)


def test_maps_and_predictions_are_those_of_the_whole(block: int) -> None:
    maps = draw(3, 5, 6, 5)
    whole = upsample(maps, SIZE)
    spread, best = pixel_maps(
        lambda logits: (logits.std(dim=1), logits.argmax(dim=1)), Upsampled(maps, SIZE)
    )
    torch.testing.assert_close(spread, whole.std(dim=1))
    assert torch.equal(best, whole.argmax(dim=1))
    assert best.dtype == torch.int64
    assert torch.equal(predict(Upsampled(maps, SIZE)), whole.argmax(dim=1))


def test_logits_at_full_size_are_taken_as_they_are() -> None:
    logits = draw(2, 4, *SIZE)
    place = (slice(0, 2), slice(3, 9))
    assert torch.equal(Upsampled.of(logits).block(*place), logits[:, :, 3:9])
    assert torch.equal(F.softmax(logits, 1).argmax(1), predict(Upsampled.of(logits)))
