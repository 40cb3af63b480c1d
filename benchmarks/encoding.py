"""Speed of reading and encoding task data: ``python benchmarks/encoding.py --tokenizer-model-type VOCABULARY``.

Prints examples a second for made-up files of ReCoRD's shape (passages of about 200 words, 12 entities, one query each):
reading the file, encoding in one process (first pass, and again with the texts remembered), and in worker processes.
``--examples 100730 --encode 4000`` reads a file of the size of ReCoRD's training file and encodes its beginning.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from data_utils.tokenizers import make_tokenizer  # noqa: E402
from tasks import data  # noqa: E402
from tasks.data import EncodedExamples, TrainLoader, make_split, read_split  # noqa: E402
from tasks.encoding import TaskEncoder  # noqa: E402
from tasks.registry import get_task  # noqa: E402
from tasks.spec import TaskOptions  # noqa: E402

WORDS = ("the government said that on monday officials would meet again to discuss trade water and the new school "
         "while people in town waited for news about a storm which had closed three roads near the coast").split()
NAMES = [f"{first} {last}" for first in ("Anna", "Omar", "Lee", "Ruth") for last in ("Brown", "Silva", "Novak", "Oro")]


def write_file(path: Path, num_examples: int) -> None:
    """A training file of ReCoRD's layout."""
    draw = random.Random(1)
    with path.open("w", encoding="utf-8") as stream:
        for idx in range(num_examples):
            names = draw.sample(NAMES, 12)
            text, entities = "", []
            for name in names:
                text += " ".join(draw.choices(WORDS, k=16)) + " "
                entities.append({"start": len(text), "end": len(text) + len(name) - 1})
                text += name + ". "
            query = " ".join([*draw.choices(WORDS, k=12), "@placeholder", *draw.choices(WORDS, k=8)])
            row = {"idx": idx, "passage": {"text": text, "entities": entities},
                   "qas": [{"idx": idx, "query": query, "answers": [{"text": names[0]}]}]}
            stream.write(json.dumps(row) + "\n")


def seconds(work: Iterable[object]) -> float:
    """How long it takes to go through something."""
    start = time.perf_counter()
    for _ in work:
        pass
    return time.perf_counter() - start


def peak_memory() -> float:
    """The most memory that this process has had, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--tokenizer-type", default="BertWordPieceTokenizer")
    parser.add_argument("--tokenizer-model-type", required=True)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--encode", type=int, default=None, help="how many of them to encode (default: all)")
    parser.add_argument("--seq-length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()

    options = TaskOptions(cloze_eval=True, seq_length=args.seq_length)
    spec, split = get_task("record", options), make_split("train", for_training=True)
    tokenizer = make_tokenizer(args.tokenizer_type, args.tokenizer_model_type)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.jsonl"
        write_file(path, args.examples)
        start = time.perf_counter()
        examples = read_split(spec, path, split, training_form=True)
        elapsed, size = time.perf_counter() - start, path.stat().st_size / 1e6
    print(f"reading: {len(examples) / elapsed:,.0f} examples/s ({len(examples)} examples, {size:,.0f} MB)")
    print(f"largest memory of this process so far: {peak_memory():,.0f} MiB")

    examples = examples[:args.encode]
    rows = sum(example.num_choices for example in examples)
    print(f"encoding {len(examples)} examples, {rows} rows")

    encoded = EncodedExamples(examples, TaskEncoder(spec, options, tokenizer))
    for name in ("encoding, first pass", "encoding, texts remembered"):
        elapsed = seconds(encoded[index] for index in range(len(encoded)))
        print(f"{name}: {len(encoded) / elapsed:,.0f} examples/s, {rows / elapsed:,.0f} rows/s in one process")
    data.MIN_EXAMPLES_FOR_WORKERS = 0
    for workers in sorted({0, args.workers}):
        fresh = EncodedExamples(examples, TaskEncoder(spec, options, tokenizer))
        loader = TrainLoader(fresh, collate=fresh.collator(), batch_size=args.batch_size, seed=1, num_workers=workers)
        elapsed = seconds(loader.epoch(0))
        print(f"batches of {args.batch_size}, {workers} worker processes: {len(fresh) / elapsed:,.0f} examples/s")
    print(f"largest memory of this process: {peak_memory():,.0f} MiB")


if __name__ == "__main__":
    main()
