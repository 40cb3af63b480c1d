"""Combiners of several teachers, one file each. Importing the package registers them."""

from distill.multi_teacher import avg, mixmt, mt_bert, rl_kd, uncertainty

__all__ = ["avg", "mixmt", "mt_bert", "rl_kd", "uncertainty"]
