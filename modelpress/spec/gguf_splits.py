"""How the vocabulary of a GGUF file splits text into words, by what its metadata calls `tokenizer.ggml.pre`.

Torch-free, so that the service refuses what the worker could not carry over.
"""

SINGLE_DIGITS = frozenset({"codeshell", "command-r", "exaone", "minerva-7b", "refact", "smollm", "starcoder"})
"""As GPT-2 does, but with every digit on its own."""

AS_GPT2 = frozenset(
    {"a.x-4.0", "default", "gigachat", "gpt-2", "jais", "mellum", "mpt", "olmo", "phi-2", "roberta-bpe", "trillion"}
)
"""As GPT-2 does. An older file that says `default` says nothing."""

BY_TRANSFORMERS = frozenset(
    {
        "dbrx", "deepseek-r1-qwen", "f2llmv2", "falcon-h1", "falcon3", "gpt-4o", "jina-v5-nano", "kanana2", "kormo",
        "lfm2", "llama-bpe", "llama-v3", "llama3", "llama4", "megrez", "midm-2.0", "minimax-m2", "pixtral", "qwen2",
        "qwen35", "smaug-bpe", "talkie", "tekken",
    }
)  # fmt: skip
"""Splits that transformers reads from the file by itself."""

KNOWN = SINGLE_DIGITS | AS_GPT2 | BY_TRANSFORMERS
