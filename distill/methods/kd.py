"""KD (Hinton, Vinyals, Dean 2015, arXiv:1503.02531): the teacher's softened predictions, and the labels.

Everything is in :meth:`GLMStudent.pre_loss`. Departure from the paper: the cross-entropy form has no factor tau^2, so
at tau = 10 its gradient is 100 times smaller (kept, because the published commands were tuned with it). PD (Turc et al.
2019, arXiv:1908.08962) is pretraining without a teacher, then this method with soft labels only.
"""

from __future__ import annotations

from distill.student import GLMStudent, register_method


@register_method("kd")
class KD(GLMStudent):
    """Reads only the prediction logits; adds no parameters and no flags of its own."""
