"""Draws the pictures of docs/ from the code: the batch's way, the attention mask, layer maps, what methods look at.

    python -m scripts.draw_pictures

Masks, positions and targets come from the objective and the attention that are trained with, layer maps from
distill/layer_maps.py, and what a method looks at from the tensors that it asks for. A test compares the files.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from data_utils.block_lm import BlockLM, BlockLMConfig, Row
from data_utils.tokenizers import Tokenizer, make_tokenizer
from distill.arguments import parse_args
from distill.layer_maps import uniform_layer_map
from distill.student import METHODS, GLMStudent
from distill.teachers import teacher_specs
from model.attention import prefix_mask
from model.config import ModelConfig
from model.glm import GLMModel
from model.taps import Hook
from scripts.describe_methods import describe_methods
from scripts.documented_commands import ROOT
from scripts.svg import Picture

FOLDER = ROOT / "docs" / "pictures"
SENTENCE = "the cat sat on the warm mat ."
#: Blanks in the sentence, in the order in which they are predicted: "warm mat", then "cat".
SPANS = ((6, 8), (2, 3))
#: Student layers and teacher layers of the maps that are drawn.
MAPS = ((6, 12), (5, 12), (6, 10))


# ---- the way of a batch -----------------------------------------------------------------------------------------

def batch_picture() -> Picture:
    """From text to a step of the optimizer."""
    picture = Picture(860, 592, "The way of one batch")
    picture.card(30, 24, 250, "plain", "text: data_utils", [
        "block-LM samples, each drawn from", "seed and sample number alone"])
    picture.card(30, 112, 250, "plain", "questions: tasks", ["cloze form of a task, one row", "for each choice"])
    picture.card(360, 60, 470, "plain", "distill/training/loop.py", [
        "the micro-batches of one step: tokens, positions, targets, loss mask",
        "one length and one number of loss tokens for all of them and all ranks"])
    for y in (57, 145):
        picture.path((280, y), (320, y), (320, 93), (360, 93), tip=True)
    picture.card(360, 182, 470, "plain", "distill/training/forward_step.py", [
        "asks the method which tensors it wants, from student and teacher"])
    picture.path((595, 126), (595, 182), tip=True)
    picture.card(110, 282, 260, "teacher", "teacher(s), no gradient", [
        "other sizes, another number of ranks,", "or kept in CPU memory: as flags say"])
    picture.card(490, 282, 260, "student", "student", ["a GLM; its checkpoint is an", "ordinary GLM checkpoint"])
    picture.path((480, 230), (480, 256), (240, 256), (240, 282), tip=True)
    picture.path((620, 230), (620, 282), tip=True)
    picture.card(110, 398, 640, "loss", "the method: one class in distill/methods", [
        "pre_loss: the teacher's predictions, and labels", "inter_loss: the tapped tensors of both"])
    for x, kind, step, anchor in ((240, "edge-teacher", 10, "start"), (620, "edge-student", -10, "end")):
        picture.path((x, 348), (x, 398), kind=kind, tip=True)
        picture.text(x + step, 377, "logits and tapped tensors", "faint", size=12, anchor=anchor)
    picture.card(110, 500, 300, "loss", "distill/multi_teacher", [
        "several teachers: one loss of theirs,", "and every term by its name"])
    picture.path((260, 464), (260, 500), kind="edge-loss", tip=True)
    picture.card(460, 500, 370, "plain", "distill/training/engine.py", [
        "backward, gradient norm, step: DeepSpeed ZeRO 0-2", "or plain PyTorch; then metrics.jsonl, checkpoints"])
    picture.path((410, 533), (460, 533), tip=True)
    picture.path((780, 500), (780, 315), (750, 315), kind="edge-student", tip=True, dashed=True)
    picture.text(774, 373, "gradient", "faint", size=12, anchor="middle", turn=-90)
    return picture


# ---- the attention mask -----------------------------------------------------------------------------------------

def example_row() -> tuple[Row, Tokenizer]:
    """The row that the block-LM objective makes of the example sentence and its blanks."""
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.txt"
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(SENTENCE.split())]
        vocabulary.write_text("\n".join(words) + "\n", encoding="utf-8")
        tokenizer = make_tokenizer("BertWordPieceTokenizer", str(vocabulary))
    text = np.array([tokenizer.command_id("ENC"), *tokenizer.encode(SENTENCE)])
    objective = BlockLM(BlockLMConfig(bert_prob=1.0), tokenizer, max_length=32)
    return objective.lay_out_spans(text, SPANS, "bert"), tokenizer


def mask_picture() -> Picture:
    """One row of a batch: who sees whom, both positions, and the targets."""
    row, tokenizer = example_row()
    names = {tokenizer.command_id(name): name for name in ("sop", "eop")}
    tokens, targets = ([names.get(token, tokenizer.id_to_token(token)) for token in ids.tolist()]
                       for ids in (row.tokens, row.labels))
    visible = prefix_mask(torch.tensor([row.sep]), 1, len(tokens))[0, 0].tolist()
    cell, left, top = 28, 150, 190
    size = cell * len(tokens)
    picture = Picture(left + size + 150, top + size + 78, "Attention mask of block language modelling")
    picture.text(20, 30, f"“{SENTENCE}” with two blanks", bold=True, size=15)
    for number, words in enumerate((
            "Rows look at columns. Part A is the text with blanks: everybody sees it. Part B spells out the",
            "blanks, in any order: a token sees Part A and what stands before it, and predicts the next one.")):
        picture.text(20, 50 + 16 * number, words, "faint", size=12)
    for number, what in enumerate(("position", "in the blank")):
        picture.text(left - 10, top - 36 + 20 * number, what, "faint", size=12, anchor="end")
    for j, token in enumerate(tokens):
        x = left + cell * (j + 0.5)
        picture.text(x + 4, top - 58, token, mono=True, size=12, turn=-60)
        for number in range(2):
            picture.text(x, top - 36 + 20 * number, str(row.position_ids[number, j]), "faint", size=12, anchor="middle")
    picture.text(left + size + 14, top - 16, "predicts", "faint", size=12)
    for i, token in enumerate(tokens):
        y = top + cell * i
        picture.text(left - 10, y + 19, token, mono=True, size=12, anchor="end")
        for j, seen in enumerate(visible[i]):
            kind = "off" if not seen else "solid-student" if j < row.sep else "solid-teacher"
            picture.box(left + cell * j + 1.5, y + 1.5, cell - 3, cell - 3, kind, round_by=3)
        if row.loss_mask[i]:
            picture.text(left + size + 14, y + 19, targets[i], mono=True, size=12)
    edge = row.sep * cell
    picture.path((left + edge, top - 4), (left + edge, top + size + 4))
    picture.path((left - 4, top + edge), (left + size + 4, top + edge))
    for x, words in ((left + edge / 2, "Part A"), (left + (edge + size) / 2, "Part B")):
        picture.text(x, top + size + 22, words, anchor="middle", bold=True)
    legend = ((left - 20, "solid-student", "Part A, seen by all"),
              (left + 150, "solid-teacher", "Part B, seen by later ones"), (left + 360, "off", "hidden"))
    for x, kind, words in legend:
        picture.box(x, top + size + 42, 16, 16, kind, round_by=3)
        picture.text(x + 24, top + size + 55, words, size=12)
    return picture


# ---- layer maps -------------------------------------------------------------------------------------------------

def maps_picture() -> Picture:
    """Which hidden state of the teacher stands for which of the student."""
    width, height, top = 280, 330, 92
    picture = Picture(30 + width * len(MAPS), top + height + 70, "Uniform layer maps")

    def place(k: int, depth: int) -> float:
        return top + height - height * k / depth

    picture.text(24, 32, "Which state of the teacher stands for which of the student", bold=True, size=15)
    picture.text(24, 52, "State 0 is the embeddings, state k what block k leaves behind. Attention k of the student "
                 "goes with attention seg(k).", "faint", size=12)
    for number, (student, teacher) in enumerate(MAPS):
        seg = uniform_layer_map(student, teacher)
        left = 70 + width * number
        right = left + 130

        for x, depth in ((left, student), (right, teacher)):
            picture.path((x, place(0, depth)), (x, place(depth, depth)))
        for k, target in enumerate(seg):
            picture.path((left, place(k, student)), (right, place(target, teacher)), kind="edge-loss")
        for x, depth, who, step in ((left, student, "student", -16), (right, teacher, "teacher", 16)):
            for k in range(depth + 1):
                used = who == "student" or k in seg
                picture.dot(x, place(k, depth), 7 if used else 4, f"solid-{who}" if used else "off")
                picture.text(x + step, place(k, depth) + 4, str(k), "ink" if used else "faint", size=12,
                             anchor="end" if step < 0 else "start")
            picture.text(x, top + height + 30, who, anchor="middle", size=12)
        picture.text((left + right) / 2, top + height + 50, f"{teacher} → {student}: seg = {', '.join(map(str, seg))}",
                     "faint", anchor="middle", size=12)
    return picture


# ---- what methods look at ---------------------------------------------------------------------------------------

#: Kind of a tapped tensor: how it is drawn, and what the legend says.
KINDS: dict[str, str] = {"state": "hidden state", "attention": "attention scores or probabilities",
                         "parts": "queries, keys or values"}
_TENSORS = {"layernorm_output": "state", "attention_scores": "attention", "attention_probs": "attention"}
Looks = dict[str, set[int]]


def looks(cls: type[GLMStudent], words: tuple[str, ...], stage: str) -> tuple[Looks, Looks]:
    """Kind of tensor -> places in the student, and in its first teacher, under a command's flags at its first step.

    Hidden states count from 0 (embeddings), the insides of blocks from 1.
    """
    args = parse_args([*words, "--hidden-size=144"], stage)
    student = cls(GLMModel(ModelConfig.from_args(args, vocab_size=128)), args, teachers=teacher_specs(args))
    depths = (student.config.num_layers, student.teachers[0].num_layers)
    found = []
    for hook, depth in zip((student.student_taps(), student.teacher_taps(0)), depths, strict=True):
        places: Looks = {}
        for kind, place in _places(hook, depth):
            places.setdefault(kind, set()).add(place)
        found.append(places)
    return found[0], found[1]


def _places(hook: Hook, depth: int) -> Iterator[tuple[str, int]]:
    transformer = hook.get("transformer", {})
    if "output" in transformer:
        yield "state", depth
    for layer, names in transformer.get("layers", {}).items():
        for name in names:
            kind = _TENSORS.get(name, "parts")
            yield kind, layer if kind == "state" else layer + 1


def looks_picture() -> Picture:
    """A row for each method: the tensors that it takes from a student of 6 and a teacher of 12 layers."""
    rows = []
    for description in describe_methods():
        command = description.commands[0]
        student, teacher = looks(METHODS[description.names[0]], command.args, command.stage)
        rows.append((description.names[0], student, teacher))
    step, line, top, left = 25, 34, 118, 150
    columns = ((left, 6, "student"), (left + 7 * step + 40, 12, "teacher"))
    picture = Picture(columns[1][0] + 12 * step + 50, top + line * len(rows) + 20, "What each method looks at")
    picture.text(24, 32, "What each method takes from the inside of the models", bold=True, size=15)
    picture.text(24, 52, "6 and 12 layers, flags of the method's first command, first step. No mark: predictions, or "
                 "whole layers (theseus).", "faint", size=12)
    x = 24.0
    for kind, words in KINDS.items():
        _mark(picture, kind, x + 8, {"state": 72, "attention": 78, "parts": 66}[kind], "student")
        picture.text(x + 22, 76, words, "faint", size=12)
        x += 42 + 6.6 * len(words)
    for x, depth, who in columns:
        picture.text(x + step * depth / 2, top - 20, who, anchor="middle", bold=True)
    for number, (name, *found) in enumerate(rows):
        y = top + line * number + 12
        picture.text(left - 20, y + 4, name, mono=True, size=12, anchor="end")
        for (x, depth, who), places in zip(columns, found, strict=True):
            picture.path((x, y), (x + step * depth, y))
            for kind in KINDS:
                for place in sorted(places.get(kind, ())):
                    _mark(picture, kind, x + step * (place if kind == "state" else place - 0.5), y, who)
    return picture


def _mark(picture: Picture, kind: str, x: float, y: float, who: str) -> None:
    if kind == "state":
        picture.dot(x, y, 6, f"solid-{who}")
    elif kind == "attention":
        picture.box(x - 5, y - 11, 10, 10, f"solid-{who}", round_by=1)
    else:
        picture.box(x - 5, y + 2, 10, 9, who, round_by=1)


# ---- files ------------------------------------------------------------------------------------------------------

PICTURES: dict[str, Callable[[], Picture]] = {
    "batch.svg": batch_picture, "attention_mask.svg": mask_picture, "layer_maps.svg": maps_picture,
    "what_methods_look_at.svg": looks_picture}


def main() -> None:
    """Rewrite every picture."""
    logging.disable(logging.WARNING)
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
