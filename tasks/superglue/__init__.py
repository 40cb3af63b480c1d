"""The SuperGLUE tasks. Reader and patterns of a task are one file; a further task is one more file, named here."""

from __future__ import annotations

from tasks.superglue import axb, axg, boolq, cb, copa, multirc, record, rte, wic, wsc

TASKS = (copa.TASK, cb.TASK, rte.TASK, boolq.TASK, wic.TASK, wsc.TASK, multirc.TASK, record.TASK, axb.TASK, axg.TASK)
