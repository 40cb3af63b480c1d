"""Combiners of several teachers, one file each. Importing the package registers them."""

from distill.multi_teacher import avg

__all__ = ["avg"]
