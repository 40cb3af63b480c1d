"""Golden cases of tasks, scores, losses and metrics: the case again, with its outputs computed by this code.

``TASK_CASES`` maps the kind of a file to ``recompute(case, shared)``. A recompute reads inputs alone; of the recorded
outputs it uses nothing but ``example_index`` (which examples were recorded).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data_utils.tokenizers import Tokenizer, make_tokenizer
from model.heads import SequenceClassification, multi_token_scores, single_token_scores
from tasks import metrics
from tasks.collate import collate
from tasks.encoding import TaskEncoder, verbalizer_id
from tasks.examples import Example, Line, Split
from tasks.losses import choice_loss
from tasks.registry import get_task, task_names
from tasks.spec import TaskOptions

Case = dict[str, Any]


class NotBuiltYet(Exception):
    """The case belongs to a task or tokenizer that this version does not have."""


def case_tokenizer(name: str, shared: Path) -> Tokenizer:
    """The tokenizer that a case names, from the vocabulary files of the shared folder."""
    vocab = shared / "data" / "vocab"
    if name.startswith("bert-"):
        return make_tokenizer("BertWordPieceTokenizer", str(vocab / "bert-base-uncased.vocab.txt"))
    if name == "gpt2":
        return make_tokenizer("GPT2BPETokenizer", str(vocab / "gpt2.vocab.json"))
    raise NotBuiltYet(f"tokenizer {name}")


def task_options(case: Case) -> TaskOptions:
    """The options of a task file. Single-word targets follow the published release: the word without its blank."""
    given = case["options"]
    known = TaskOptions.__dataclass_fields__
    return TaskOptions(**{name: value for name, value in given.items() if name in known}, bpe_word_with_blank=False)


def _encoder(case: Case, shared: Path, **changes: Any) -> TaskEncoder:
    if case["task"].lower() not in task_names():
        raise NotBuiltYet(f"task {case['task']}")
    options = replace(task_options(case), **changes)
    return TaskEncoder(get_task(case["task"], options), options, case_tokenizer(case["options"]["tokenizer"], shared))


def recompute_task(case: Case, shared: Path) -> Case:
    """Examples and encoded samples of every section of a task file."""
    encoder = _encoder(case, shared)
    spec, sections = encoder.spec, []
    for section in case["sections"]:
        split = Split(section["split"], section["split"])
        lines = [Line(Path(section["file"]), number, row) for number, row in enumerate(section["rows"], start=1)]
        examples = sorted(spec.read(lines, split, split.kind == "train"), key=lambda example: example.num_choices)
        recorded = section.get("encoded")
        indices = range(len(examples)) if recorded is None else [one["example_index"] for one in recorded]
        encoded = [{"example_index": index, **_sample(encoder, examples[index])} for index in indices]
        sections.append({**section, "examples": [_example(example) for example in examples], "encoded": encoded})
    return {**case, "sections": sections}


def recompute_glue(case: Case, shared: Path) -> Case:
    """Encoded samples of every pattern of a ``glue_`` file, whose examples are given."""
    examples, patterns = [Example(**example) for example in case["examples"]], []
    for one in case["patterns"]:
        encoder = _encoder(case, shared, pattern_id=one["pattern_id"])
        indices = [entry["example_index"] for entry in one["encoded"]]
        patterns.append({**one, "encoded": [{"example_index": index, **_sample(encoder, examples[index])}
                                            for index in indices]})
    return {**case, "labels": list(encoder.spec.labels), "patterns": patterns}


def _example(example: Example) -> Case:
    return {"guid": example.guid, "text_a": example.text_a, "text_b": example.text_b, "label": example.label,
            "idx": example.idx, "num_choices": example.num_choices, "meta": dict(example.meta)}


def _sample(encoder: TaskEncoder, example: Example) -> Case:
    sample: Case = {name: tensor.tolist() for name, tensor in encoder(example).items()}
    options, spec = encoder.options, encoder.spec
    has_prompt_places = options.cloze_eval and not options.fast_decode and not (
        spec.name == "copa" and options.pattern_id >= 2 and not options.continuous_prompt)
    if has_prompt_places and "prompt_pos" not in sample:  # no prompt tokens: recorded as an empty list a row
        sample["prompt_pos"] = [[] for _ in sample["text"]] if spec.is_multi_choice else []
    return {**sample, "uid": example.guid}


def recompute_collate(case: Case, shared: Path) -> Case:
    """Batches of ``collate.json``."""
    cases = []
    for one in case["cases"]:
        samples = [{name: torch.tensor(value) for name, value in sample.items() if name != "uid"}
                   for sample in one["samples"]]
        batch = {name: tensor.tolist() for name, tensor in collate(samples, one["fixed_num_choices"]).items()}
        cases.append({**one, "batch": {**batch, "uid": [sample["uid"] for sample in one["samples"]]}})
    return {**case, "cases": cases}


def recompute_heads(case: Case, shared: Path) -> Case:
    """Scores of ``heads.json``."""
    multi = []
    for one in case["multi_token"]:
        target, mask = torch.tensor(one["target"]), torch.tensor(one["logit_mask"])  # [b, c, s]
        scores = multi_token_scores(torch.tensor(one["lm_logits"]), target.flatten(0, 1), mask.flatten(0, 1),
                                    one["length_penalty"])
        multi.append({**one, "choice_logits": scores.view(target.shape[:2]).tolist()})
    single = [{**one, "logits": single_token_scores(torch.tensor(one["lm_logits"]), torch.tensor(one["sep"]),
                                                    torch.tensor(one["verbalizer_ids"]),
                                                    one["log_softmax_first"]).tolist()} for one in case["single_token"]]
    return {**case, "multi_token": multi, "single_token": single,
            "classification": [_classify(one) for one in case.get("classification", [])]}


def _classify(one: Case) -> Case:
    """The classification head, on the hidden states of the case."""
    hidden = torch.tensor(one["hidden"])
    head = SequenceClassification(torch.nn.Identity(), hidden.shape[-1], len(one["head_bias"]), 0.0, one["pool_token"])
    parts = {"pool_layer": "pool", "multichoice_head": "head"}
    head.load_state_dict({f"{part}.{kind}": torch.tensor(one[f"{name}_{kind}"])
                          for part, name in parts.items() for kind in ("weight", "bias")})
    with torch.no_grad():
        return {**one, "logits": head.classify(hidden, torch.tensor(one["sep"])).tolist()}


def recompute_losses(case: Case, shared: Path) -> Case:
    """Values of ``losses.json``; the adapet value is that of -|logits|."""
    cases = []
    for one in case["cases"]:
        logits, labels = torch.tensor(one["logits"]), torch.tensor(one["labels"])
        mask = None if one["loss_mask"] is None else torch.tensor(one["loss_mask"])
        values = {kind: float(choice_loss(logits, labels, kind=kind, choice_mask=mask))
                  for kind in ("cross_entropy", "hinge", "generative", "mix")}
        values["adapet"] = float(choice_loss(-logits.abs(), labels, kind="adapet", choice_mask=mask))
        cases.append({**one, **values})
    return {**case, "cases": cases}


def recompute_metrics(case: Case, shared: Path) -> Case:
    """Values of ``metrics.json``."""
    classification = []
    for one in case["classification"]:
        predictions, labels = one["predictions"], one["labels"]
        values = {"accuracy": metrics.accuracy(predictions, labels), "f1_macro": metrics.f1_macro(predictions, labels)}
        if set(predictions) | set(labels) <= {0, 1}:
            values["f1"] = metrics.f1(predictions, labels)
        classification.append({**one, **values})
    multirc = []
    for one in case["multirc"]:
        predictions, labels = one["predictions"], one["labels"]
        examples = [Example("", "", meta={"question_idx": index}) for index in one["question_idx"]]
        multirc.append({**one, "em": metrics.grouped_exact_match(predictions, labels, examples),
                        "f1a": metrics.f1(predictions, labels), "acc": metrics.accuracy(predictions, labels)})
    record = []
    for one in case["record"]:
        examples = [Example("", "", meta=example) for example in one["examples"]]
        record.append({**one, "EM": metrics.record_exact_match(one["predictions"], [], examples),
                       "F1": metrics.record_f1(one["predictions"], [], examples)})
    names = {name: list(get_task(name, TaskOptions()).metrics) for name in case["task_metrics"] if name in task_names()}
    return {
        **case, "classification": classification, "multirc": multirc, "record": record,
        "normalize_answer": [{**one, "normalized": metrics.normalize_answer(one["text"])}
                             for one in case["normalize_answer"]],
        "pair": [{**one, "f1": metrics.token_f1(one["prediction"], one["truth"]),
                  "em": metrics.exact_match(one["prediction"], one["truth"])} for one in case["pair"]],
        "squad": [{**one, **metrics.squad_scores(one["predictions"], one["answers"], one["idx"])}
                  for one in case["squad"]],
        "task_metrics": names,
    }


def recompute_verbalizers(case: Case, shared: Path) -> Case:
    """Labels, words and ids of ``verbalizers.json``, for the tasks of this version; by the published release's rule."""
    result: Case = {}
    for tokenizer_name, tasks in case.items():
        tokenizer = case_tokenizer(tokenizer_name, shared)
        result[tokenizer_name] = {task: {pattern: _verbalizers(task, int(pattern), tokenizer) for pattern in patterns}
                                  for task, patterns in tasks.items() if task in task_names()}
    return result


def _verbalizers(task: str, pattern_id: int, tokenizer: Tokenizer) -> Case:
    spec = get_task(task, TaskOptions(cloze_eval=True, pattern_id=pattern_id))
    words = spec.verbalizers[pattern_id]
    case = {"labels": list(spec.labels), "words": list(words)}
    try:
        return {**case, "ids": [verbalizer_id(tokenizer, word, with_blank=False) for word in words]}
    except ValueError:
        return {**case, "release_fails": True}


#: Kind of a golden file -> recompute. Task files go by shape or name (:func:`kind_of`).
TASK_CASES: dict[str, Callable[[Case, Path], Case]] = {
    "task": recompute_task,
    "glue": recompute_glue,
    "collate": recompute_collate,
    "heads": recompute_heads,
    "losses": recompute_losses,
    "metrics": recompute_metrics,
    "verbalizers": recompute_verbalizers,
}


def kind_of(file_name: str, case: Case) -> str | None:
    """The kind of a golden file, None where it is none of ours."""
    if "sections" in case:
        return "task"
    if file_name.startswith("glue_"):
        return "glue"
    stem = Path(file_name).stem
    return stem if stem in TASK_CASES else None
