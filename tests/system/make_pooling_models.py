"""Makes a tiny embedding model and a tiny reranker with random weights and the demo model's tokenizer.

Runs in vLLM's environment: `python make_pooling_models.py TOKENIZER_FOLDER OUTPUT_FOLDER`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification


def main(tokenizer_folder: str, output: Path) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": tokenizer.pad_token_id,
    }
    models = {
        "embedder": LlamaForCausalLM(LlamaConfig(**shape)),
        "reranker": LlamaForSequenceClassification(LlamaConfig(**shape, num_labels=1)),
    }
    for name, model in models.items():
        model.to(torch.bfloat16).save_pretrained(output / name)
        tokenizer.save_pretrained(output / name)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
