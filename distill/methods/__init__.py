"""Distillation methods, one file each. Importing the package registers them."""

from distill.methods import (
    alp_kd,
    annealing_kd,
    ckd,
    continuation_kd,
    diito,
    distilbert,
    erdistill,
    glmd,
    kd,
    lrc_bert,
    mgskd,
    minilm,
    minilmv2,
    mixbaseline,
    mobilebert,
    pkd,
    rail_kd,
    sid,
    theseus,
    tinybert,
    universal_kd,
)

__all__ = ["alp_kd", "annealing_kd", "ckd", "continuation_kd", "diito", "distilbert", "erdistill", "glmd", "kd",
           "lrc_bert", "mgskd", "minilm", "minilmv2", "mixbaseline", "mobilebert", "pkd", "rail_kd", "sid", "theseus",
           "tinybert", "universal_kd"]
