"""Tasks of GLUE, CLUE and text classification, in the formats in which they are published.

The release fails to register a metric for some of them (mnli-mm, agnews, yahoo, yelp-*, race): here all have accuracy,
CoLA the Matthews correlation as well. Left out: xstance, whose patterns are not specified.
"""

from __future__ import annotations

from tasks.glue import clue, mnli, pairs, qnli, race, sentences, squad, topics, yelp

TASKS = (*mnli.TASKS, *sentences.TASKS, *pairs.TASKS, qnli.TASK, *topics.TASKS, *yelp.TASKS, race.TASK, squad.TASK,
         *clue.TASKS)
