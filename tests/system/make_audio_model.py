"""Makes a tiny Whisper with random weights and a tokenizer of single bytes.

Runs in vLLM's environment: `python make_audio_model.py OUTPUT_FOLDER`.
"""

from __future__ import annotations

import string
import sys
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

END = "<|endoftext|>"
START = "<|startoftranscript|>"
TASKS = ("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")
TIMES = [f"<|{step * 0.02:.2f}|>" for step in range(1501)]


def main(output: Path) -> None:
    torch.manual_seed(0)
    special = [END, START, *(f"<|{code}|>" for code in LANGUAGES), *TASKS, *TIMES]
    vocabulary = {token: number for number, token in enumerate([*sorted(ByteLevel.alphabet()), *special])}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[], additional_special_tokens=special[1:])
    end, start = vocabulary[END], vocabulary[START]
    config = WhisperConfig(
        vocab_size=len(vocabulary),
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config.is_multilingual = True
    # What it says is letters: the other tokens weigh nothing.
    letters = [vocabulary[letter] for letter in string.ascii_lowercase]
    with torch.no_grad():
        weights = model.get_output_embeddings().weight
        kept = weights[letters].clone()
        weights *= 0.001
        weights[letters] = kept
    model.to(torch.bfloat16).save_pretrained(output)
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(output)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
