"""Language-model evaluation: how well a GLM continues texts, without patterns or labels. One table of three tasks."""

from __future__ import annotations

from tasks.language_model.metrics import accuracy, loss, ppl, word_ppl
from tasks.language_model.passages import read_documents, read_lambada, read_wikitext
from tasks.language_model.spec import LanguageModelTask

_PERPLEXITY = {"ppl": ppl, "word_ppl": word_ppl, "loss": loss}

#: By name: the texts of a file one by one; the last word of each passage (LAMBADA); one article after the other as one
#: text (WikiText-103).
LANGUAGE_MODEL_TASKS = {task.name: task for task in (
    LanguageModelTask("language_model", read_documents, _PERPLEXITY),
    LanguageModelTask("lambda", read_lambada, {"accuracy": accuracy, **_PERPLEXITY}, scores_last_word=True),
    LanguageModelTask("wikitext", read_wikitext, _PERPLEXITY),
)}


def is_language_model_task(name: str | None) -> bool:
    """Whether ``--task=name`` (any case) is one of these."""
    return name is not None and name.lower() in LANGUAGE_MODEL_TASKS
