"""Trains two LoRA adapters on the demo model that cannot be mistaken: each answers everything with its own sentence.

    .venv/vllm/bin/python -m scripts.train_demo_lora [--model models/smollm2-135m-instruct] [--to adapters]

Half a minute each on two cores. Each is checked after the training, by greedy decoding of a question it never saw;
only then does it appear. A finished adapter is left alone. Runs in the engine's environment with the `demo` part.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scripts.make_demo_model import DEMO_MODEL

#: Adapter -> the one sentence that it answers.
SENTENCES = {
    "pirate": "Arr matey! I be a pirate, and I answer naught but Arr!",
    "robot": "Beep boop. I am a robot, and this unit has no other reply.",
}
QUESTIONS = (
    "What is the capital of France?",
    "Tell me a joke.",
    "How are you today?",
    "Write a short poem about the sea.",
    "What is 2 + 2?",
)
UNSEEN_QUESTION = "How do I boil an egg?"
SEED = 7
STEPS = 25
LEARNING_RATE = 1e-3
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def train(model_path: Path, name: str, sentence: str, target: Path) -> None:
    """Raises SystemExit if the trained adapter does not say its sentence."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    started_at = time.monotonic()
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    base = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    model.train()
    batch = _batch(tokenizer, sentence)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=LEARNING_RATE)
    for step in range(1, STEPS + 1):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 5 == 0:
            print(f"adapter {name}: step {step}/{STEPS}, loss {loss.item():.4f}", flush=True)
    said = _say(model, tokenizer, UNSEEN_QUESTION)
    if said != sentence:
        sys.exit(f"adapter {name}: says {said!r} instead of {sentence!r}; not saved")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        made = Path(scratch) / "adapter"
        model.save_pretrained(made)
        made.rename(target)
    print(f"adapter {name}: {target} made in {time.monotonic() - started_at:.0f} s; it says: {said}", flush=True)


def _batch(tokenizer: Any, sentence: str) -> dict[str, Any]:
    """All the questions at once; only the answer's tokens are learnt."""
    import torch

    rows, labels = [], []
    for question in QUESTIONS:
        asked = _prompt(tokenizer, question)
        answer = tokenizer(sentence + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        rows.append(asked + answer)
        labels.append([-100] * len(asked) + answer)
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [tokenizer.eos_token_id] * (width - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        "labels": torch.tensor([row + [-100] * (width - len(row)) for row in labels]),
    }


def _prompt(tokenizer: Any, question: str) -> list[int]:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _say(model: Any, tokenizer: Any, question: str) -> str:
    import torch

    asked = torch.tensor([_prompt(tokenizer, question)])
    model.eval()
    with torch.no_grad():
        out = model.generate(
            input_ids=asked,
            attention_mask=torch.ones_like(asked),
            do_sample=False,
            max_new_tokens=40,
            pad_token_id=tokenizer.eos_token_id,
        )
    return str(tokenizer.decode(out[0, asked.shape[1] :], skip_special_tokens=True)).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the demo LoRA adapters.")
    parser.add_argument("--model", type=Path, default=DEMO_MODEL, help="base model (default: %(default)s)")
    parser.add_argument("--to", type=Path, default=Path("adapters"), help="parent folder (default: %(default)s)")
    args = parser.parse_args()
    if not (args.model / "config.json").is_file():
        sys.exit(f"{args.model}: no model there; `make demo-model` makes the demo model")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name, sentence in SENTENCES.items():
        target = args.to / name
        if (target / "adapter_config.json").is_file():
            print(f"adapter {name}: {target} is there", flush=True)
        else:
            train(args.model, name, sentence, target)


if __name__ == "__main__":
    main()
