"""AX-g (Winogender, Rudinger et al. 2018, in SuperGLUE): does a model of RTE depend on gender? It is for evaluation."""

from __future__ import annotations

from dataclasses import replace

from tasks.superglue import rte
from tasks.superglue.axb import diagnostic_files

TASK = replace(rte.TASK, name="ax-g", files=diagnostic_files("AX-g.jsonl"))
