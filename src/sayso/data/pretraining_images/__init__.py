"""Pre-training images with captions, as the base model learned from, whatever keeps them."""

from sayso.data.pretraining_images._buckets import bucket_sizes
from sayso.data.pretraining_images._contract import (
    HELDOUT_SHARE,
    Damaged,
    Part,
    PretrainingSet,
    Ranges,
    is_held_out,
    whole,
)
from sayso.data.pretraining_images.opening import open_pretraining

__all__ = [
    "HELDOUT_SHARE",
    "Damaged",
    "Part",
    "PretrainingSet",
    "Ranges",
    "bucket_sizes",
    "is_held_out",
    "open_pretraining",
    "whole",
]
