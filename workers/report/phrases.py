"""Phrases of Markdown that several sections of a model card need."""

from modelpress.contract.options import Mixed


def dataset_mix(text: Mixed) -> str:
    """Return the datasets of a mix, with their shares if it states any, as text."""
    named = [code(dataset) for dataset in text.datasets]
    if text.shares is None:
        return ", ".join(named)
    return ", ".join(
        f"{dataset} ({share} of {sum(text.shares)})" for dataset, share in zip(named, text.shares, strict=True)
    )


def code(text: str) -> str:
    """Return text as Markdown code that is safe inside a table."""
    return f"`{text.replace('`', '').replace('|', '')}`"


def plain(text: str) -> str:
    """Return text with Markdown's special characters escaped."""
    return "".join(f"\\{character}" if character in "\\`*_[]<>|#" else character for character in text)
