"""Step time and memory of every method relative to ``kd``: ``python benchmarks/methods.py [--method NAME …]``.

One training step (forward of the teacher, forward and backward of the student, all loss terms) of a 12-layer teacher
and a 6-layer student on one block-LM batch, one thread, dropout 0. Each method runs in a process of its own; CPU time
is the least of ``--repeats``, memory is what the peak of the process grows by during the steps.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

#: Published flags of each method, as far as they matter for a step of pretraining.
FLAGS: dict[str, tuple[str, ...]] = {
    "kd": ("--distill_pt_soft", "--distill_pt_hard", "--distill_temperature=10"),
    "logitsdistil": ("--distill_temperature=15", "--logitsdistil_mask_pad"),
    "tinybert": (),
    "minilm": (),
    "minilmv2": ("--minilmv2_relation_heads=48", "--minilmv2_teacher_layer=12"),
    "distilbert": ("--distill_temperature=2", "--distilbert_alpha_ce=5", "--distilbert_alpha_mlm=2"),
    "erdistill": ("--erdistill_inter_mse", "--distill_pt_hard"),
    "pkd": ("--distill_pt_soft", "--distill_pt_hard", "--pkd_normalized_patience", "--pkd_only_cls", "--pkd_wo_final"),
    "rail_kd": ("--distill_pt_soft", "--distill_pt_hard", "--rail_kd_concatenated", "--rail_kd_iters=3000"),
    "mgskd": ("--mgskd_sample_level_m=3",),
    "diito": ("--forward_repeat_num=1", "--distill_pt_soft", "--distill_pt_hard", "--diito_alpha_causal_cos=0"),
    "sid": ("--distill_pt_soft",),
    "alp_kd": ("--distill_pt_soft", "--distill_pt_hard"),
    "ckd": ("--distill_pt_soft", "--distill_pt_hard", "--distill_temperature=3"),
    "theseus": ("--distill_pt_hard", "--mt_disable_operation=1"),
    "universal_kd": ("--distill_pt_soft",),
    "lrc_bert": ("--distill_pt_soft", "--distill_pt_hard"),
    "annealing_kd": ("--distill_pt_soft", "--distill_pt_soft_mse"),
    "continuation_kd": ("--distill_pt_soft", "--distill_pt_soft_mse", "--distill_pt_hard"),
    "mobilebert": ("--distill_pt_hard",),
    "mixbaseline": ("--mixbaseline_inter_bl=TinyBERT,MiniLMv2,MiniLM,DistilBERT",
                    "--mixbaseline_pre_bl_pt_soft=DistilBERT", "--minilmv2_relation_heads=48",
                    "--minilmv2_teacher_layer=12"),
}


def measure(method: str, width: int, batch: int, length: int, vocab: int, repeats: int) -> dict[str, float]:
    """CPU seconds of the quickest step and MiB that the peak grows by, in this process."""
    import torch

    from distill.arguments import build_parser
    from distill.multi_teacher_model import attach_combiner
    from distill.student import build_student
    from distill.teachers import build_teachers, disabled_teachers, teacher_specs
    from distill.training.build import backbone, output_shape
    from distill.training.forward_step import StepContext, forward_step
    from distill.training.run_state import RunState
    from model.config import ModelConfig

    torch.set_num_threads(1)
    words = ["--block-lm", "--num-layers=6", f"--hidden-size={width}", "--num-attention-heads=12",
             f"--max-position-embeddings={length}", "--attention-dropout=0", "--hidden-dropout=0",
             f"--student_model={method}", "--teacher_load_pretrained=none", "--teacher_random_para",
             "--teacher_num_layers=12", f"--teacher_hidden_size={width}", "--teacher_num_attention_heads=12",
             f"--teacher_max_position_embeddings={length}", *FLAGS[method]]
    args = build_parser("pretrain").parse_args(words)
    torch.manual_seed(1)
    config = ModelConfig.from_args(args, vocab_size=vocab)
    specs, run = teacher_specs(args), RunState(train_iters=100)
    teachers = build_teachers(specs, config, build_model=lambda sizes: backbone(sizes, None),
                              load_weights=lambda model, path: None)
    student = build_student(backbone(config, None), args, teachers=specs, run=run)
    combiner = attach_combiner(student, args, output_shape(None, args))
    context = StepContext(student.train(), args, run, student=student, teachers=teachers, combiner=combiner,
                          disabled=disabled_teachers(args, len(specs)), num_tokens=vocab)
    sep = length * 3 // 4
    index = torch.arange(length).expand(batch, length)
    in_b = index >= sep
    data = {"tokens": torch.randint(vocab, (batch, length)), "labels": torch.randint(1, vocab, (batch, length)),
            "loss_mask": in_b.float(), "attention_mask": torch.full((batch,), sep),
            "position_ids": torch.stack([torch.where(in_b, sep // 2, index), (index - sep + 1).clamp(min=0)], dim=1)}
    before, times = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(repeats):
        started = time.process_time()
        forward_step(context, data).loss.backward()
        times.append(time.process_time() - started)
        student.zero_grad(set_to_none=True)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": min(times), "MiB": grown / 1024}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--method", nargs="+", choices=sorted(FLAGS), default=list(FLAGS))
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    words = parser.parse_args()
    sizes = (words.width, words.batch, words.length, words.vocab, words.repeats)
    if words.inside:
        print(json.dumps(measure(words.method[0], *sizes)))
        return 0
    results = {}
    print(f"12 and 6 layers of width {words.width}, {words.batch} x {words.length} tokens, vocabulary {words.vocab}")
    print("| method | CPU s a step | relative to kd | peak MiB | relative to kd |\n| --- | ---: | ---: | ---: | ---: |")
    for method in dict.fromkeys(["kd", *words.method]):
        command = [sys.executable, __file__, "--inside", "--method", method, "--width", str(words.width), "--batch",
                   str(words.batch), "--length", str(words.length), "--vocab", str(words.vocab), "--repeats",
                   str(words.repeats)]
        child = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if child.returncode:
            print(child.stderr, file=sys.stderr)
            return 1
        own = results[method] = json.loads(child.stdout.splitlines()[-1])
        base = results["kd"]
        print(f"| `{method}` | {own['seconds']:.2f} | {own['seconds'] / base['seconds']:.2f} | {own['MiB']:.0f} | "
              f"{own['MiB'] / base['MiB']:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
