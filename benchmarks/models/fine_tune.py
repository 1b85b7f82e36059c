"""Makes a fine-tune of the embedded SmolLM2-135M that reads facts and answers in JSON.

    python benchmarks/models/fine_tune.py FOLDER [--steps 30] [--rate 5e-5] [--seed 0]

All weights are trained (AdamW, on the answers' tokens and the prompts'), on text that is made from
the seed, for a few minutes on two cores. The tokenizer is the base's own.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

NAMES = ["Alice", "Bob", "Carol", "David", "Emma", "Frank", "Grace", "Henry", "Irene", "Jack"]
NAMES += ["Karen", "Leo", "Maria", "Nathan", "Olga", "Peter", "Rosa", "Simon", "Tina", "Victor"]
SAID = {
    "city": ("{} lives in {}.", ["Paris", "London", "Berlin", "Madrid", "Rome", "Vienna"]),
    "color": ("The color that {} likes is {}.", ["red", "blue", "green", "yellow", "black"]),
    "pet": ("{} has a {} as a pet.", ["cat", "dog", "horse", "rabbit", "snake", "turtle"]),
    "job": ("{} works as a {}.", ["nurse", "pilot", "farmer", "lawyer", "teacher", "judge"]),
    "drink": ("{} drinks {} every day.", ["tea", "coffee", "milk", "water", "juice"]),
}
FILLER = ["The weather was calm that day.", "There is a market near the river."]
FILLER += ["The road to the north was closed.", "A small garden lies behind the bridge."]


def task(rng: random.Random, facts: int) -> tuple[str, str, str]:
    """A document of ``facts`` facts, a question about one of them, and the answer's text."""
    pairs = rng.sample([(name, what) for name in NAMES for what in SAID], facts)
    known = [(name, what, rng.choice(SAID[what][1])) for name, what in pairs]
    lines = [SAID[what][0].format(name, value) for name, what, value in known]
    for _ in range(facts // 4):
        lines.insert(rng.randrange(len(lines)), rng.choice(FILLER))
    name, what, value = rng.choice(known)
    question = f"\n\nQuestion: What is the {what} of {name}?\nAnswer:"
    return " ".join(lines), question, " " + json.dumps({"name": name, what: value})


def fine_tune(folder: Path, steps: int = 30, rate: float = 5e-5, seed: int = 0) -> str:
    """Writes the fine-tune and its tokenizer as a Hugging Face folder; returns the folder. Prints
    the loss now and then."""
    import torch

    from lmcache_cli.engines.transformers.models import load_model

    loaded = load_model(None, "cpu", "auto")
    model, rng = loaded.model.train(), random.Random(seed)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    # A short rise of the rate, then a line down to nothing.
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 6, (steps - step) / steps)
    )
    began = time.monotonic()
    for step in range(steps):
        optimizer.zero_grad()
        total = 0.0
        for _ in range(_BATCH):
            document, question, answer = task(rng, rng.randint(6, 24))
            asked, told = loaded.encode(document + question), loaded.encode(answer)
            ids = torch.tensor([[*asked, *told, loaded.tokenizer.eos_token_id]])
            logits = model(ids).logits[0, :-1]
            losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
            # The prompt's tokens a little too: a document's own words move all layers.
            loss = losses[len(asked) - 1 :].mean() + 0.2 * losses[: len(asked) - 1].mean()
            (loss / _BATCH).backward()  # type: ignore[no-untyped-call]
            total += loss.item() / _BATCH
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 10 == 0 or step == steps - 1:
            print(f"step {step}: loss {total:.3f}, {time.monotonic() - began:.0f} s", flush=True)
    model.eval().save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return str(folder)


_BATCH = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rate", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    print(fine_tune(wanted.folder, wanted.steps, wanted.rate, wanted.seed))


if __name__ == "__main__":
    main()
