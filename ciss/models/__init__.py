"""The segmentation network."""

from ciss.models.network import (
    Features,
    NetworkConfig,
    NetworkOutput,
    SegmentationNetwork,
    initialise,
    upsample,
    widened,
    with_norm,
)
from ciss.models.normalisation import synchronise

__all__ = [
    "Features",
    "NetworkConfig",
    "NetworkOutput",
    "SegmentationNetwork",
    "initialise",
    "synchronise",
    "upsample",
    "widened",
    "with_norm",
]
