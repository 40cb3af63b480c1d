"""Flags of the training room: optimisation, schedule, precision, parallelism, saving, evaluation, logging."""

from __future__ import annotations

import argparse

from distill.flag_types import positive_int
from tasks.flags import OVERLAP


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    """Add every flag that the loop, the engines and the checkpoints read."""
    _add_optimisation(parser.add_argument_group("optimisation"))
    _add_schedule(parser.add_argument_group("learning-rate schedule"))
    _add_precision(parser.add_argument_group("precision"))
    _add_speed(parser.add_argument_group("speed and memory"))
    _add_parallelism(parser.add_argument_group("parallelism and DeepSpeed"))
    _add_saving(parser.add_argument_group("saving and loading"))
    _add_evaluation(parser.add_argument_group("evaluation"))
    _add_logging(parser.add_argument_group("logging and bookkeeping"))


def _add_optimisation(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--batch-size", type=positive_int, default=4,
                       help="samples per data-parallel rank and micro-batch; the DeepSpeed file wins over it")
    group.add_argument("--gradient-accumulation-steps", type=positive_int, default=1,
                       help="micro-batches per optimizer step; the DeepSpeed file wins over it")
    group.add_argument("--epochs", type=int, default=None, help="passes over the fine-tuning data; 0 evaluates only")
    group.add_argument("--train-iters", type=int, default=0,
                       help="optimizer steps of pretraining (fine-tuning computes its own); 0 does not train")
    group.add_argument("--lr", type=float, default=1e-4,
                       help="peak learning rate; the DeepSpeed file wins over it")
    group.add_argument("--weight-decay", type=float, default=0.01,
                       help="decoupled weight decay, not of biases and layer norms; the DeepSpeed file wins over it")
    group.add_argument("--clip-grad", type=float, default=1.0,
                       help="largest gradient norm, 0 = no clipping; with --deepspeed the file's gradient_clipping")
    group.add_argument("--optimizer", choices=("adam", "adafactor"), default="adam",
                       help="only adam (decoupled weight decay) is implemented")
    group.add_argument("--adam-beta1", type=float, default=0.9, help="decay of Adam's first moment")
    group.add_argument("--adam-beta2", type=float, default=0.999, help="decay of Adam's second moment")
    group.add_argument("--adam-eps", type=float, default=1e-8, help="Adam's epsilon")
    group.add_argument("--seed", type=int, default=1234, help="root of every random generator; 0 or less: not seeded")


def _add_schedule(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--lr-decay-style", choices=("constant", "linear", "cosine", "exponential"), default="linear",
                       help="shape after the warm-up; exponential is constant, as it always was")
    group.add_argument("--lr-decay-iters", type=int, default=None,
                       help="length of the schedule; default: the whole training")
    group.add_argument("--lr-decay-ratio", type=float, default=0.1, help="last learning rate as a share of the peak")
    group.add_argument("--warmup", type=float, default=0.01,
                       help="share of the schedule in which the rate rises from 0, at most 0.5")
    group.add_argument("--switch-linear", action="store_true",
                       help="on resuming, decay linearly from the current rate to the end of training")


def _add_precision(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--fp16", action="store_true", help="train in float16 (fp32 without a GPU)")
    group.add_argument("--bf16", action="store_true", help="train in bfloat16, with fp32 master weights")
    group.add_argument("--loss-scale", type=float, default=None, help="fixed fp16 loss scale; default: dynamic")
    group.add_argument("--loss-scale-window", type=float, default=1000,
                       help="steps without overflow after which the dynamic scale doubles")
    group.add_argument("--min-scale", type=float, default=1, help="smallest dynamic loss scale")
    group.add_argument("--hysteresis", type=int, default=2, help="overflows before the dynamic scale is halved")


def _add_speed(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--fused-lm-loss", action="store_true",
                       help="output layer and loss in one operation that never holds the logits: plain pretraining, kd "
                            "and logitsdistil with one teacher; refused where something else reads the logits")
    group.add_argument("--compile", action="store_true",
                       help="compile the transformer layers that no method taps (torch.compile; on a CPU it needs a "
                            "C++ compiler); the first steps take minutes")


def _add_parallelism(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model-parallel-size", type=positive_int, default=1, help="ranks that one model is cut over")
    group.add_argument("--deepspeed", action="store_true", help="train with DeepSpeed; needs --deepspeed_config")
    group.add_argument("--deepspeed_config", default=None, help="the DeepSpeed JSON file")
    group.add_argument("--deepspeed-activation-checkpointing", action="store_true",
                       help="the same as --checkpoint-activations")
    group.add_argument("--args_to_ds_config", action="store_true",
                       help="the command line wins over the DeepSpeed file for batch size, accumulation, fp16, "
                            "ZeRO stage and offload")
    group.add_argument("--zero_stage", type=int, default=0, help="ZeRO stage for --args_to_ds_config: 0, 1 or 2")
    group.add_argument("--cpu_offload", action="store_true",
                       help="optimizer state in main memory, for --args_to_ds_config with a ZeRO stage above 0")
    group.add_argument("--distributed-backend", choices=("nccl", "gloo"), default="nccl",
                       help="collectives; gloo where there is no GPU")
    group.add_argument("--local_rank", "--local-rank", type=int, default=None, help="set by the launcher")


def _add_saving(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--save", default=None, help="folder below which the run's folder is made")
    group.add_argument("--experiment-name", default="gpt-345M",
                       help="name of the run's folder; pretraining appends the time")
    group.add_argument("--save-interval", type=int, default=5000,
                       help="iterations between pretraining checkpoints; 0 = only at the end")
    group.add_argument("--save_interval_time", type=float, default=0.0,
                       help="also save every so many hours; 0 = not")
    group.add_argument("--save-epoch", type=int, default=1, help="epochs between fine-tuning checkpoints")
    group.add_argument("--ft_final_save", action="store_true", help="save after the last fine-tuning step as well")
    group.add_argument("--no-save-optim", action="store_true", help="checkpoints without optimizer and schedule")
    group.add_argument("--no-save-rng", action="store_true", help="checkpoints without random states")
    group.add_argument("--load", default=None, help="resume everything from this run folder or checkpoint")
    group.add_argument("--new-save-directory", action="store_true",
                       help="with --load: start a new folder instead of continuing in the loaded run's")
    group.add_argument("--no-load-optim", action="store_true", help="resume without the optimizer state")
    group.add_argument("--no-load-rng", action="store_true", help="resume without the random states")
    group.add_argument("--no-load-lr-scheduler", action="store_true", help="resume without the schedule")
    group.add_argument("--load-pretrained", default=None, help="start from the weights of this checkpoint")
    group.add_argument("--trust-checkpoint", action="store_true",
                       help="also read old checkpoints whose pickles can run code; only for files you trust")
    group.add_argument("--overwrite", action="store_true",
                       help="allow fine-tuning into a run folder that has test results already")
    group.add_argument("--custom_no_save_checkpoint", action="store_true",
                       help="write neither checkpoints nor results nor predictions")


def _add_evaluation(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--eval-batch-size", type=positive_int, default=None,
                       help="samples per rank in evaluation; default: --batch-size")
    group.add_argument("--eval-interval", type=int, default=1000,
                       help="iterations between evaluations of the validation loss; 0 = none")
    group.add_argument("--eval-iters", type=int, default=100, help="batches per evaluation of the validation loss")
    group.add_argument("--eval-seq-length", type=positive_int, default=None,
                       help="longest validation sample in pretraining, in tokens; default: --seq-length")
    group.add_argument("--overlapping-eval", type=positive_int, default=OVERLAP,
                       help="language-model tasks: tokens by which a window moves on; those before are its context")
    group.add_argument("--eval-epoch", type=int, default=1, help="epochs between evaluations of the task's metrics")
    group.add_argument("--custom_first_eval", action="store_true",
                       help="evaluate the metrics before training too; counts for the best checkpoint")
    group.add_argument("--validation-metric", default=None,
                       help="metric that decides about the best checkpoint; default: the task's first")
    group.add_argument("--no-validation", action="store_true",
                       help="no metrics during training; the last weights are evaluated at the end")


def _add_logging(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--log-interval", type=positive_int, default=100, help="iterations between log lines")
    group.add_argument("--summary-dir", default="",
                       help="folder of the records if --custom_no_summary_writer or no --save: <dir>/runs/<experiment>")
    group.add_argument("--log-dir", default=None,
                       help="folder of metrics.jsonl, TensorBoard files and results; default: <run>/tensorboard")
    group.add_argument("--custom_no_summary_writer", action="store_true",
                       help="no TensorBoard, metrics.jsonl or config.json")
    group.add_argument("--custom_tmp_result", default=None,
                       help="JSON file that always holds the best score of each metric so far")
    group.add_argument("--fast-dev-run", type=positive_int, nargs="?", const=2, default=None, metavar="STEPS",
                       help="try this command out: so many steps (2 if no number is given) and one evaluation of a "
                            "narrow model in a temporary folder; what does not exist is made up")
    group.add_argument("--user-module", default=None,
                       help="a Python file or module with methods of your own, loaded before the flags are parsed")
