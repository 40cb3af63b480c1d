"""Where a distillation method is found and where a new one is added.

The methods of this version are the files of :mod:`distill.methods`; docs/methods.md describes them, with their commands
and flags. By what they match, with the value of ``--student_model``:

    ============================= ====================================================================
    predictions                   kd, annealing_kd, continuation_kd
    vocabulary logits             logitsdistil (GLMD)
    attention                     minilm, minilmv2
    hidden states                 pkd, alp_kd, rail_kd, universal_kd, lrc_bert, mgskd, ckd, erdistill
    attention and hidden states   tinybert, sid, mobilebert
    predictions and hidden states distilbert, diito
    replaced layers, no loss      theseus
    several methods at once       mixbaseline
    ============================= ====================================================================

To add one, write a class at the end of this file, or in a file of your own given as ``--user-module=my_method.py``
(which starts with
``from distill.distill_model import GLMStudent, layer_hook, mse, tapped``):

    class MiddleLayer(GLMStudent):
        def __init__(self, language_model, args, **kwargs):
            super().__init__(language_model, args, **kwargs)

        def get_teacher_hook(self, **kwargs):
            return layer_hook({self.args.teacher_num_layers // 2: "layernorm_output"})

        def get_student_hook(self, **kwargs):
            return layer_hook({self.args.num_layers // 2: "layernorm_output"})

        def inter_loss(self, s_inter_vars, t_inter_vars, s_hook, t_hook, keep_batch=False, **kwargs):
            s_layer, t_layer = self.args.num_layers // 2, self.args.teacher_num_layers // 2
            student = tapped(s_inter_vars, s_hook, "transformer", "layers", s_layer, "layernorm_output")
            teacher = tapped(t_inter_vars, t_hook, "transformer", "layers", t_layer, "layernorm_output")
            return mse(student, teacher, keep_batch=keep_batch)

It is ``--student_model=middle_layer``; ``@register_method("name")`` above the class chooses another name. Flags of
its own come from a class method ``add_flags(parser)``. Nothing has to call ``super()`` but ``__init__``.
"""

import distill.methods  # noqa: F401  (registers the methods)
from distill.losses import cosine_distance, information_entropy, kl_divergence, mse, soft_cross_entropy
from distill.student import (
    METHODS,
    GLMStudent,
    Pair,
    build_student,
    find_method,
    register_method,
)
from model.taps import layer_hook, merge_hooks, tapped

__all__ = ["METHODS", "GLMStudent", "Pair", "build_student", "cosine_distance", "find_method", "information_entropy",
           "kl_divergence", "layer_hook", "merge_hooks", "mse", "register_method",
           "soft_cross_entropy", "tapped"]

# New methods go here.
