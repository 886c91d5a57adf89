"""Training batches as one writes them with Pillow and torchvision, in a ``Dataset``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ciss.loading import MEAN, RATIO, SCALE, STD

Tensors = tuple[torch.Tensor, torch.Tensor]


def torchvision_transforms() -> Any:
    """Import torchvision's transforms, also where its compiled part does not fit this torch."""
    try:
        from torchvision import transforms
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        global _operators
        _operators = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            _operators.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        from torchvision import transforms
    return transforms


class PlainImages(Dataset[Tensors]):
    """What one writes with Pillow and torchvision: float32 [3, H, W] and int64 [H, W]."""

    def __init__(
        self, root: Path, pairs: list[tuple[str, str]], lookup: Any, crop: int, per_pixel: bool
    ) -> None:
        self.transforms = torchvision_transforms()
        self.root, self.pairs, self.crop, self.per_pixel = root, pairs, crop, per_pixel
        self.table = torch.from_numpy(lookup.astype(np.int64))
        self.order = {value: int(label) for value, label in enumerate(lookup)}
        self.kept = [value for value, label in self.order.items() if label != 0]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> Tensors:
        image_path, mask_path = self.pairs[number]
        image = Image.open(self.root / image_path).convert("RGB")
        mask = Image.open(self.root / mask_path)
        box = self.transforms.RandomResizedCrop.get_params(image, SCALE, RATIO)
        return self.augmented(image, mask, box, bool(torch.rand(()) < 0.5))

    def augmented(
        self, image: Image.Image, mask: Image.Image, box: tuple[int, int, int, int], flip: bool
    ) -> Tensors:
        """Crop and resize a box (top, left, height, width), mirror, and make tensors."""
        functional = self.transforms.functional
        size, modes = (self.crop, self.crop), self.transforms.InterpolationMode
        image = functional.resized_crop(image, *box, size, modes.BILINEAR)
        mask = functional.resized_crop(mask, *box, size, modes.NEAREST)
        if flip:
            image, mask = functional.hflip(image), functional.hflip(mask)
        pixels = functional.normalize(functional.to_tensor(image), MEAN, STD)
        labels = torch.from_numpy(np.array(mask))
        if self.per_pixel:
            labels.apply_(lambda value: self.order[value] if value in self.kept else 0)
            return pixels, labels.long()
        return pixels, self.table[labels.long()]

    def batch(self, numbers: Sequence[int]) -> Tensors:
        samples = [self[number] for number in numbers]
        return torch.stack([s[0] for s in samples]), torch.stack([s[1] for s in samples])
