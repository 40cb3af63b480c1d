"""The SuperGLUE tasks. Reader and patterns of a task are one file; a further task is one more file, named here."""

from __future__ import annotations

from tasks.superglue import boolq, cb, copa, record, rte

TASKS = (copa.TASK, cb.TASK, rte.TASK, boolq.TASK, record.TASK)
