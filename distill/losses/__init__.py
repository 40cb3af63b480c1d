"""Loss functions: pure, every option a named keyword, in at least float32, independent of the model-parallel size."""

from distill.losses.distances import cosine_distance, mse
from distill.losses.divergences import information_entropy, kl_divergence, soft_cross_entropy
from distill.losses.masking import position_pad_mask, reduce_rows

__all__ = ["cosine_distance", "information_entropy", "kl_divergence", "mse", "position_pad_mask", "reduce_rows",
           "soft_cross_entropy"]
