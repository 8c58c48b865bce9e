"""Run tasks of EleutherAI's lm-evaluation-harness on a model in memory.

    tasks = load(["arc_easy", "our_own"], folder)        # with their data, none of which is fetched
    found = scores(tasks["our_own"], model, tokenizer, limit=100)
    found["our_own"].metrics["acc"].value

Prompts, few-shot examples, scoring and seeds are the library's own, so a score is comparable with any other from the
same version of the task. The library is an optional extra: import this module only where it is needed.
"""

from collections.abc import Sequence
from contextlib import chdir, nullcontext
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modelpress.spec.errors import TaskDataMissing, TaskNotRunnable, UnknownTask
from workers.compression.evaluation.task_scores import TaskScore, scores_in

BATCH = 1
"""Sequences at a time. Each needs six bytes per token and vocabulary entry, which soon exceeds the model's size."""

RESAMPLES = 1000
"""Bootstrap samples for standard errors without a formula, which are then known to a few percent. The library's default
is a hundred times as many."""


def load(names: Sequence[str], folder: Path | None = None) -> dict[str, list[Any]]:
    """Return, by name, what the library runs for it: a task, a group, or the tasks of a tag.

    `folder` holds further tasks, which take precedence over the library's: YAML files, and the data and Python files
    that these name by relative paths. Data on the Hub is read from the cache of `datasets`.

    Raises:
        UnknownTask: neither the library nor the folder has a task, group or tag of that name.
        TaskDataMissing: data is neither in the folder nor in the cache.
        TaskNotRunnable: the task cannot be set up, would run code that a model writes, or is multimodal.
    """
    manager = _manager(names, folder)
    with nullcontext() if folder is None else chdir(folder):
        return {name: _load(manager, name) for name in names}


def scores(
    task: Sequence[Any], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, limit: int | None = None
) -> dict[str, TaskScore]:
    """Run one entry of `load`'s result on the model and return the scores by task name.

    A group with scores of its own replaces its tasks. `limit` is the number of examples per task, taken from the
    beginning; None runs them all.
    """
    # A softmax in bfloat16 would round away the differences between answers.
    asked = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=BATCH, softmax_dtype="float32")
    found = simple_evaluate(
        model=asked,
        tasks=list(task),
        limit=limit,
        bootstrap_iters=RESAMPLES,
        log_samples=False,
        # Everything is loaded already, and indexing all tasks would take half a minute.
        task_manager=TaskManager(include_defaults=False),
    )
    return scores_in(found or {})


def _manager(names: Sequence[str], folder: Path | None) -> TaskManager:
    """Return an index of the folder's tasks alone where that suffices: indexing the library's takes half a minute."""
    if folder is None:
        return TaskManager()
    alone = TaskManager(include_path=str(folder), include_defaults=False)
    return alone if set(names) <= set(alone.all_subtasks) else TaskManager(include_path=str(folder))


def _load(manager: TaskManager, name: str) -> list[Any]:
    """Return the tasks or the group of one name; raises as `load` does."""
    if name not in manager.task_index:
        raise UnknownTask(f"lm-eval has no task, group or tag {name!r} on this worker")
    try:
        loaded = manager.load([name])
    except (ConnectionError, FileNotFoundError) as error:
        raise TaskDataMissing(
            f"the data of the task {name!r} is not on this worker, and jobs download nothing; load it there once into "
            f"HF_DATASETS_CACHE. The library reports: {str(error)[:200]}"
        ) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:
        # A task is third-party YAML, templates and code, and may raise anything.
        raise TaskNotRunnable(f"the task {name!r} cannot be set up: {type(error).__name__}: {error}"[:500]) from error
    for task in loaded["tasks"].values():
        _require_plain(task)
    group = loaded.get("groups", {}).get(name)
    return list(loaded["tasks"].values()) if group is None else [group]


def _require_plain(task: Any) -> None:
    """Raise TaskNotRunnable for a task that executes generated code or needs more than text."""
    if getattr(task, "UNSAFE_CODE", False):
        raise TaskNotRunnable(
            f"the task {task.task_name!r} would execute code that the model writes, which this service does not do"
        )
    if getattr(task, "MULTIMODAL", False):
        raise TaskNotRunnable(f"the task {task.task_name!r} needs images or audio; only text tasks are supported")
