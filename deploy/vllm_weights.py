"""The weights in a GGUF file as a folder that vLLM reads: its tokenizer, its template, and its numbers as bfloat16.

Runs in the environment of vLLM: ``python vllm_weights.py MODEL.gguf FOLDER``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def convert(weights: Path, folder: Path) -> None:
    source, name = weights.parent, weights.name
    AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(folder)
    # Not dequantized, it could not be saved.
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
