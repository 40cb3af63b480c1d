"""Distillation methods, one file each. Importing the package registers them."""

from distill.methods import glmd, kd, tinybert

__all__ = ["glmd", "kd", "tinybert"]
