"""Conversations, as a model's chat template writes them. A template is a stranger's program."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from workers.compression.time_limit import TimeUp, time_limit

TEMPLATE_SECONDS = 10.0
MOST_CHARACTERS = 1_000_000
"""What a template may write around a conversation, which it may repeat a few times."""
REPETITIONS = 10


class TemplateFailed(ValueError):
    """The chat template does not write a conversation; the message completes 'the model's chat template …'."""


def written(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Any], **options: Any) -> str:
    """Return what the tokenizer's chat template makes of a conversation, with the options of `apply_chat_template`.

    Raises:
        TemplateFailed: it takes too long, writes too much, or fails in whatever way.
        MemoryError: there is not enough memory for it.
    """
    conversation: Any = messages
    try:
        with time_limit(TEMPLATE_SECONDS):
            text = str(tokenizer.apply_chat_template(conversation, tokenize=False, **options))
    except TimeUp as error:
        raise TemplateFailed(f"takes over {TEMPLATE_SECONDS:g} s for a conversation") from error
    except MemoryError:
        raise
    except Exception as error:  # it may raise whatever it likes
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise TemplateFailed(f"refuses a conversation of {roles[:200]}: {error}") from error
    most = MOST_CHARACTERS + REPETITIONS * sum(len(str(message.get("content"))) for message in messages)
    if len(text) > most:
        raise TemplateFailed(f"writes over {most:,} characters for a conversation")
    return text
