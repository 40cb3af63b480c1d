"""The flags of fine-tuning tasks, and the check that every one given can act."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from tasks.language_model import LANGUAGE_MODEL_TASKS, is_language_model_task
from tasks.language_model.flags import check_language_model_flags
from tasks.losses import LOSS_KINDS
from tasks.registry import get_task
from tasks.spec import TaskOptions, TaskSpec


def add_task_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the group "Fine-tuning and tasks"."""
    group = parser.add_argument_group("Fine-tuning and tasks")
    flag, add = _switch(group), group.add_argument
    flag("--finetune", "declare a fine-tuning run (required by the fine-tuning script)")
    add("--task", metavar="NAME", help="task, in any case: COPA, CB, RTE, BoolQ, WiC, WSC, MultiRC, ReCoRD, AX-b, "
        "AX-g, GLUE-type tasks, language_model, lambda, wikitext (an unknown name lists all)")
    add("--train-split", default="train", metavar="STEM",
        help="training file STEM.jsonl below --data-dir; 'unlabeled' for distillation without labels")
    flag("--cloze-eval", "classification as blank filling through a pattern; otherwise a classification head")
    add("--pattern-id", type=int, default=0, help="which pattern of the task")
    flag("--multi-token", "score label words by all their tokens (set by itself for tasks that need it)")
    add("--segment-length", type=int, default=0, help="score long answers in pieces of this many tokens (0: whole)")
    add("--loss-func", default="cross_entropy", choices=[kind for kind in LOSS_KINDS if kind != "adapet"],
        help="loss over the scores of the choices")
    flag("--wsc-negative", "WSC with candidates (a folder WSC-negative) as multiple choice")
    add("--length-penalty", type=float, default=0.0,
        help="divide an answer's score by its number of tokens to this power")
    flag("--adapet", "decoupled label loss over log-probabilities instead of --loss-func")
    add("--pool-token", default="cls", choices=["start", "pad", "cls"],
        help="token pooled by the classification head")
    flag("--fast-decode", "encode the text once for all candidates")
    add("--block-lm-ratio", type=float, default=0.0, help="ratio r of blank-filling steps on the labelled texts: a "
        "step is one with probability r / (1 + r)")
    flag("--few-superglue", "the 32-example development set: dev is dev32.jsonl, test is val.jsonl")
    flag("--fix_variable_num_choices", "exactly 10 choices in every training sample of ReCoRD and WSC")
    flag("--unidirectional", "language-model tasks: every token sees only what is on its left")
    add("--src-seq-length", type=int, help="source length of sequence tasks (not available yet)")
    add("--tgt-seq-length", type=int, help="target length of sequence tasks (not available yet)")
    flag("--continuous-prompt", "trainable prompt embeddings")
    add("--num-prompt-tokens", type=int, default=0, help="number of prompt tokens")
    add("--prompt-func", default="lstm", choices=["lstm", "mlp", "none"],
        help="encoder of the prompt")
    add("--prefix-prompt", type=int, default=0, help="number of prefix prompt tokens")
    flag("--prompt-init", "initialise the prompt from words")


def _switch(group: argparse._ArgumentGroup) -> Callable[[str, str], None]:
    def add(name: str, text: str) -> None:
        group.add_argument(name, action="store_true", help=text)
    return add


#: Options whose tasks are missing: destination in the arguments -> (how it is given, what it belongs to).
NOT_WIRED = {
    "src_seq_length": ("--src-seq-length", "sequence-to-sequence tasks"),
    "tgt_seq_length": ("--tgt-seq-length", "sequence-to-sequence tasks"),
}


#: Default of ``--overlapping-eval``.
OVERLAP = 32


def _defaults() -> dict[str, object]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_task_flags(parser)
    return vars(parser.parse_args([]))


def check_task_flags(args: argparse.Namespace) -> None:
    """ValueError for options of a fine-tuning run that cannot act or contradict each other; call it with --finetune."""
    if not args.task:
        raise ValueError("--finetune needs --task, for example --task=COPA")
    for dest, (name, subject) in NOT_WIRED.items():
        if getattr(args, dest, None):
            raise ValueError(f"{name} belongs to {subject}, which this version does not have; leave it out")
    if is_language_model_task(args.task):
        check_language_model_flags(args, _defaults())
        return
    for name, value in (("--unidirectional", args.unidirectional),
                        ("--overlapping-eval", getattr(args, "overlapping_eval", OVERLAP) != OVERLAP)):
        if value:
            raise ValueError(f"{name} belongs to the tasks {', '.join(LANGUAGE_MODEL_TASKS)}, got --task={args.task}; "
                             "leave it out")
    options = TaskOptions.from_args(args)
    spec = get_task(args.task, options)
    _check_form(args, options, spec)
    _check_answers(args, options, spec)
    _check_prompt(args, options)


def _check_form(args: argparse.Namespace, options: TaskOptions, spec: TaskSpec) -> None:
    """What needs the pattern form, or one task."""
    if options.cloze_eval and not getattr(args, "block_lm", True):
        raise ValueError("--cloze-eval fills a blank, which needs --block-lm")
    if options.wsc_negative and spec.name != "wsc":
        raise ValueError(f"--wsc-negative belongs to --task=WSC, got --task={args.task}; leave it out")
    if not options.cloze_eval:
        for name, value, reason in (
                ("--multi-token", options.multi_token, "scores answers in the blank of a pattern"),
                ("--adapet", args.adapet, "compares label words in the blank of a pattern"),
                ("--wsc-negative", options.wsc_negative, "ranks candidates in the blank of a pattern"),
                ("--continuous-prompt", options.continuous_prompt, "puts tokens into a pattern"),
                ("--prefix-prompt", options.prefix_prompt, "puts tokens in front of a pattern"),
                ("--block-lm-ratio", args.block_lm_ratio, "trains on patterns with their answers")):
            if value:
                raise ValueError(f"{name} {reason}; give --cloze-eval with it")
    if args.block_lm_ratio < 0:
        raise ValueError(f"--block-lm-ratio={args.block_lm_ratio} must not be negative")


def _check_answers(args: argparse.Namespace, options: TaskOptions, spec: TaskSpec) -> None:
    """What acts on answers of several tokens."""
    for name, value in (("--length-penalty", args.length_penalty), ("--segment-length", options.segment_length),
                        ("--fast-decode", options.fast_decode)):
        if value and spec.head != "multi_token":
            raise ValueError(f"{name}={value} needs answers of several tokens that are compared: give --cloze-eval, "
                             "and --multi-token for tasks whose labels are single words (WSC: --wsc-negative)")
    if options.segment_length < 0:
        raise ValueError(f"--segment-length={options.segment_length} must not be negative")
    for name, value in (("--fast-decode", options.fast_decode), ("--adapet", args.adapet),
                        ("--fix_variable_num_choices", options.fix_variable_num_choices)):
        if options.segment_length and value:
            raise ValueError(f"--segment-length makes several rows of an answer, which {name} does not know; "
                             "leave one of both out")
    for name, value in (("--adapet", args.adapet), (f"--loss-func={args.loss_func}",
                                                    args.loss_func != "cross_entropy")):
        if value and spec.head == "language_model":
            raise ValueError(f"{name} compares answers, and WSC without candidates has one; leave it out, or give "
                             "--wsc-negative and a folder with candidates")
    if spec.name == "squad" and args.loss_func not in ("generative", "mix"):
        raise ValueError(f"--task=squad has one answer an example: with --loss-func={args.loss_func} there is nothing "
                         "to compare it with; give --loss-func=generative")


def _check_prompt(args: argparse.Namespace, options: TaskOptions) -> None:
    if min(options.num_prompt_tokens, options.prefix_prompt) < 0:
        raise ValueError(f"--num-prompt-tokens={options.num_prompt_tokens} and --prefix-prompt={options.prefix_prompt} "
                         "must not be negative")
    if options.continuous_prompt != (options.num_prompt_tokens > 0):
        raise ValueError("--continuous-prompt and --num-prompt-tokens=N (N > 0) belong together; give both or none")
    if args.block_lm_ratio and options.num_prompt_tokens + options.prefix_prompt:
        raise ValueError("--block-lm-ratio masks pieces of the labelled texts, and the places of prompt tokens would "
                         "be lost; leave --continuous-prompt and --prefix-prompt out, or --block-lm-ratio")
    if not options.num_prompt_tokens + options.prefix_prompt:
        for name, value in (("--prompt-init", args.prompt_init),
                            (f"--prompt-func={args.prompt_func}", args.prompt_func != "lstm")):
            if value:
                raise ValueError(f"{name} shapes a continuous prompt, and there is none; give --continuous-prompt "
                                 "--num-prompt-tokens=N or --prefix-prompt=N, or leave it out")
