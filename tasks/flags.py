"""The flags of fine-tuning tasks, and the check that every one given can act."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from tasks.losses import LOSS_KINDS
from tasks.registry import get_task
from tasks.spec import TaskOptions


def add_task_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the group "Fine-tuning and tasks"."""
    group = parser.add_argument_group("Fine-tuning and tasks")
    flag, add = _switch(group), group.add_argument
    flag("--finetune", "declare a fine-tuning run (required by the fine-tuning script)")
    add("--task", metavar="NAME", help="task, in any case: COPA, CB, RTE, BoolQ, ReCoRD")
    add("--train-split", default="train", metavar="STEM",
        help="training file STEM.jsonl below --data-dir; 'unlabeled' for distillation without labels")
    flag("--cloze-eval", "classification as blank filling through a pattern; otherwise a classification head")
    add("--pattern-id", type=int, default=0, help="which pattern of the task")
    flag("--multi-token", "score label words by all their tokens (set by itself for tasks that need it)")
    add("--segment-length", type=int, default=0, help="split long answers into pieces (not available yet)")
    add("--loss-func", default="cross_entropy", choices=[kind for kind in LOSS_KINDS if kind != "adapet"],
        help="loss over the scores of the choices")
    flag("--wsc-negative", "WSC with candidates as multiple choice (WSC is not available yet)")
    add("--length-penalty", type=float, default=0.0,
        help="divide an answer's score by its number of tokens to this power")
    flag("--adapet", "decoupled label loss over log-probabilities instead of --loss-func")
    add("--pool-token", default="cls", choices=["start", "pad", "cls"],
        help="token pooled by the classification head")
    flag("--fast-decode", "encode the text once for all candidates (not available yet)")
    add("--block-lm-ratio", type=float, default=0.0, help="share of blank-filling steps mixed in (not available yet)")
    flag("--few-superglue", "the 32-example development set: dev is dev32.jsonl, test is val.jsonl")
    flag("--fix_variable_num_choices", "exactly 10 choices in every training sample of ReCoRD")
    flag("--unidirectional", "language-model evaluation from left to right (not available yet)")
    add("--src-seq-length", type=int, help="source length of sequence tasks (not available yet)")
    add("--tgt-seq-length", type=int, help="target length of sequence tasks (not available yet)")
    flag("--continuous-prompt", "trainable prompt embeddings (not available yet)")
    add("--num-prompt-tokens", type=int, default=0, help="number of prompt tokens (not available yet)")
    add("--prompt-func", default="lstm", choices=["lstm", "mlp", "none"],
        help="encoder of the prompt (not available yet)")
    add("--prefix-prompt", type=int, default=0, help="number of prefix prompt tokens (not available yet)")
    flag("--prompt-init", "initialise the prompt from words (not available yet)")


def _switch(group: argparse._ArgumentGroup) -> Callable[[str, str], None]:
    def add(name: str, text: str) -> None:
        group.add_argument(name, action="store_true", help=text)
    return add


#: Destination -> (flag, what it belongs to): options whose task or mechanism is not part of the toolkit yet.
_NOT_YET = {
    "segment_length": ("--segment-length", "scoring of long answers in pieces"),
    "wsc_negative": ("--wsc-negative", "the WSC task"),
    "fast_decode": ("--fast-decode", "decoding without repeating the text"),
    "block_lm_ratio": ("--block-lm-ratio", "mixed blank-filling steps"),
    "unidirectional": ("--unidirectional", "language-model evaluation"),
    "src_seq_length": ("--src-seq-length", "sequence-to-sequence tasks"),
    "tgt_seq_length": ("--tgt-seq-length", "sequence-to-sequence tasks"),
    "continuous_prompt": ("--continuous-prompt", "continuous prompts"),
    "num_prompt_tokens": ("--num-prompt-tokens", "continuous prompts"),
    "prefix_prompt": ("--prefix-prompt", "continuous prompts"),
    "prompt_init": ("--prompt-init", "continuous prompts"),
}


def check_task_flags(args: argparse.Namespace) -> None:
    """ValueError for options of a fine-tuning run that cannot act or contradict each other; call it with --finetune."""
    if not args.task:
        raise ValueError("--finetune needs --task, for example --task=COPA")
    for dest, (name, subject) in _NOT_YET.items():
        if getattr(args, dest, None):
            raise ValueError(f"{name} belongs to {subject}, which this version does not have yet; leave it out")
    options = TaskOptions.from_args(args)
    spec = get_task(args.task, options)
    if options.cloze_eval and not getattr(args, "block_lm", True):
        raise ValueError("--cloze-eval fills a blank, which needs --block-lm")
    if options.multi_token and not options.cloze_eval:
        raise ValueError("--multi-token scores answers in the blank of a pattern; give --cloze-eval with it")
    if args.length_penalty and not spec.is_multi_token:
        raise ValueError(f"--length-penalty={args.length_penalty} needs answers of several tokens: give --cloze-eval, "
                         "and --multi-token for tasks whose labels are single words")
    if args.adapet and not options.cloze_eval:
        raise ValueError("--adapet compares label words in the blank of a pattern; give --cloze-eval with it")
