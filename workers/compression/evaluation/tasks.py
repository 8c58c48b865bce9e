"""Tasks of EleutherAI's lm-evaluation-harness, asked of a model in memory by that library itself.

    tasks = load(["arc_easy", "our_own"], folder)        # with their data, none of which is fetched
    found = scores(tasks["our_own"], model, tokenizer, limit=100)
    found["our_own"].metrics["acc"].value

Prompts, shots, scoring and seeds are the library's own, so a score compares with any other that it gave by the same
version of the task. It is an optional extra, so this module is imported only where it is needed.
"""

from collections.abc import Sequence
from contextlib import chdir, nullcontext
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workers.compression.evaluation.task_scores import TaskScore, scores_in
from workers.compression.spec.errors import TaskDataMissing, TaskNotRunnable, UnknownTask

BATCH = 1
"""Sequences at a time. Each takes six bytes for every token and entry of the vocabulary: soon more than the model."""

RESAMPLES = 1000
"""Bootstrap samples for the standard errors that have no formula, which are then known to a few percent. The library
would take a hundred times as many."""


def load(names: Sequence[str], folder: Path | None = None) -> dict[str, list[Any]]:
    """For each name what the library runs: a task, a group, or the tasks of a tag.

    `folder` holds tasks beside those of the library, before which they go: YAML files, and the data and Python that
    these name by paths relative to it or to themselves. Data of the hub is read from the cache of `datasets`.

    Raises:
        UnknownTask: neither the library nor the folder has a task, group or tag of that name.
        TaskDataMissing: data is neither in the folder nor in the cache.
        TaskNotRunnable: the task cannot be set up, would run code that a model writes, or shows more than text.
    """
    manager = _manager(names, folder)
    with nullcontext() if folder is None else chdir(folder):
        return {name: _load(manager, name) for name in names}


def scores(
    task: Sequence[Any], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, limit: int | None = None
) -> dict[str, TaskScore]:
    """What the model comes to on one of the values that `load` gives, by the names of the tasks in it.

    Tasks that a group sums up are left out. `limit`: only so many examples of each, the first.
    """
    # Differences between answers get lost in the rounding of a softmax in bfloat16.
    asked = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=BATCH, softmax_dtype="float32")
    found = simple_evaluate(
        model=asked,
        tasks=list(task),
        limit=limit,
        bootstrap_iters=RESAMPLES,
        log_samples=False,
        # Everything is loaded, and its index of all tasks takes half a minute to make.
        task_manager=TaskManager(include_defaults=False),
    )
    return scores_in(found or {})


def _manager(names: Sequence[str], folder: Path | None) -> TaskManager:
    """The library's index of the folder where that suffices, since one of all its own tasks takes half a minute."""
    if folder is None:
        return TaskManager()
    alone = TaskManager(include_path=str(folder), include_defaults=False)
    return alone if set(names) <= set(alone.all_subtasks) else TaskManager(include_path=str(folder))


def _load(manager: TaskManager, name: str) -> list[Any]:
    if name not in manager.task_index:
        raise UnknownTask(f"lm-eval knows no task {name!r} on this worker")
    try:
        loaded = manager.load([name])
    except (ConnectionError, FileNotFoundError) as error:
        raise TaskDataMissing(
            f"what the task {name!r} reads is not on this worker, and nothing is fetched while it computes; load it "
            f"there once into HF_DATASETS_CACHE. The library says: {str(error)[:200]}"
        ) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:
        # A task is somebody's YAML, templates and code, and fails in as many ways.
        raise TaskNotRunnable(f"the task {name!r} cannot be set up: {type(error).__name__}: {error}"[:500]) from error
    for task in loaded["tasks"].values():
        _require_plain(task)
    group = loaded.get("groups", {}).get(name)
    return list(loaded["tasks"].values()) if group is None else [group]


def _require_plain(task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise TaskNotRunnable(f"the task {task.task_name!r} runs code that a model writes, which is not done here")
    if getattr(task, "MULTIMODAL", False):
        raise TaskNotRunnable(f"the task {task.task_name!r} shows more than text")
