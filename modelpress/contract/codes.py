"""Every code that a job can fail with: its meaning, what to do about it, and whether another attempt can help.

`/problems/<code>` shows an entry of the table as a page.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class FailureCode(StrEnum):
    """Why a job has failed. A code never changes its meaning; later versions of the service may add codes."""

    # The model and the text that the recipe names.
    UNKNOWN_MODEL = "unknown_model"
    OUTSIDE_ROOTS = "outside_roots"
    NO_SAFETENSORS = "no_safetensors"
    INVALID_MODEL = "invalid_model"
    UNSUPPORTED_ARCHITECTURE = "unsupported_architecture"
    NO_TOKENIZER = "no_tokenizer"
    UNKNOWN_DATASET = "unknown_dataset"
    TEXT_TOO_SHORT = "text_too_short"
    CONVERSATION_REFUSED = "conversation_refused"
    EVALUATION_OVERLAP = "evaluation_overlap"
    HUB_UNAVAILABLE = "hub_unavailable"
    DOWNLOAD_CORRUPTED = "download_corrupted"

    # The method and what comes of it.
    METHOD_DOES_NOT_FIT = "method_does_not_fit"
    RATIO_OUT_OF_RANGE = "ratio_out_of_range"
    NO_METHOD_FITS = "no_method_fits"
    NOT_FINITE = "not_finite"
    DIVERGED = "diverged"
    VERIFICATION_FAILED = "verification_failed"
    QUALITY_GATE = "quality_gate"
    UNKNOWN_TASK = "unknown_task"
    TASK_DATA_MISSING = "task_data_missing"
    TASK_NOT_RUNNABLE = "task_not_runnable"

    # The worker and its machine.
    MISSING_EXTRA = "missing_extra"
    OUT_OF_MEMORY = "out_of_memory"
    DISK_FULL = "disk_full"
    STORAGE_FAILED = "storage_failed"
    TIMED_OUT = "timed_out"
    COMPUTE_KILLED = "compute_killed"
    COMPUTE_CRASHED = "compute_crashed"
    WORKER_LOST = "worker_lost"
    INTERNAL_ERROR = "internal_error"

    @property
    def kind(self) -> "FailureKind":
        """Return the explanation of the code."""
        return FAILURES[self]


@dataclass(frozen=True)
class FailureKind:
    """The explanation of a failure code for a person."""

    title: str
    explanation: str
    way_out: str
    retryable: bool = False
    """Whether the cause may be temporary: the service then retries the job, and posting it again can help."""
    waits: bool = False
    """Whether the cause lies in the operator's machines: the service then waits until it is gone, and does not count
    the attempt."""


FAILURES: Final[Mapping[FailureCode, FailureKind]] = MappingProxyType(
    {
        FailureCode.UNKNOWN_MODEL: FailureKind(
            "There is no such model",
            "Neither the hub nor the directories that the operator allows have a model of this name and revision, or "
            "the service may not read it.",
            "Check the spelling. A private or gated model needs an operator's MODELPRESS_HUB_TOKEN that may read it.",
        ),
        FailureCode.OUTSIDE_ROOTS: FailureKind(
            "The path lies outside the allowed directories",
            "A local: name may only lead into the directories of MODELPRESS_MODEL_ROOTS and MODELPRESS_DATA_ROOTS. "
            "This one leads out of them, by '..' or by a symbolic link.",
            "Send a name relative to one of these directories, or ask the operator to allow another directory.",
        ),
        FailureCode.NO_SAFETENSORS: FailureKind(
            "The model has no safetensors weights",
            "Weights are read from safetensors only. Pickled weights, such as pytorch_model.bin, can run code when "
            "they are opened.",
            "Name a revision with safetensors, or convert the weights with transformers' save_pretrained.",
        ),
        FailureCode.INVALID_MODEL: FailureKind(
            "The model's files are invalid",
            "A file is damaged or missing, or the files contradict each other. The message names the first fault.",
            "Download or export the model again.",
        ),
        FailureCode.UNSUPPORTED_ARCHITECTURE: FailureKind(
            "The architecture is not supported",
            "The service does not know the layout of this model type, the model needs code of its own, or its weights "
            "are quantised.",
            "Send a model of a supported architecture; the README lists them.",
        ),
        FailureCode.NO_TOKENIZER: FailureKind(
            "The model has no usable tokenizer",
            "The model's directory has no tokenizer that transformers can open, so no text can be tokenized.",
            "Put the tokenizer's files beside the weights.",
        ),
        FailureCode.UNKNOWN_DATASET: FailureKind(
            "There is no such dataset",
            "The dataset does not exist, or the service cannot read its text.",
            "Check the name; the message says what is missing.",
        ),
        FailureCode.TEXT_TOO_SHORT: FailureKind(
            "A text is too short",
            "A dataset has fewer tokens than one sequence of the length that the recipe asks for.",
            "Lower the length or window that the message names, or send a longer text.",
        ),
        FailureCode.CONVERSATION_REFUSED: FailureKind(
            "The chat template refuses a conversation",
            "The model's chat template cannot render a conversation of the dataset, for instance because it knows no "
            "system message.",
            "Remove such conversations from the dataset, or send plain text.",
        ),
        FailureCode.EVALUATION_OVERLAP: FailureKind(
            "The evaluation text is also calibration text",
            "Too much of an evaluation dataset also occurs in the text of the calibration or the distillation, so its "
            "perplexity would say nothing about other text.",
            "Evaluate on other text.",
        ),
        FailureCode.HUB_UNAVAILABLE: FailureKind(
            "The model hub does not answer",
            "The hub could not be reached, answered with an error, or sent its files too slowly.",
            "Wait, then post the recipe again. What has been downloaded is kept.",
            retryable=True,
        ),
        FailureCode.DOWNLOAD_CORRUPTED: FailureKind(
            "A downloaded file is corrupted",
            "A downloaded file has another digest than the hub lists. It was deleted.",
            "Post the recipe again. If it happens again, look for a proxy or a mirror that changes files.",
            retryable=True,
        ),
        FailureCode.METHOD_DOES_NOT_FIT: FailureKind(
            "The method does not fit the model",
            "The method, or one of its options, cannot be applied to a model of this architecture and these sizes.",
            "Choose the option that the message names, or another method.",
        ),
        FailureCode.RATIO_OUT_OF_RANGE: FailureKind(
            "The target ratio cannot be reached",
            "The ratio is outside the range that the method reaches on this model.",
            "Send a ratio from the range that the message names, or choose another method.",
        ),
        FailureCode.NO_METHOD_FITS: FailureKind(
            "No method of 'auto' works at this ratio",
            "'auto' tried every method that reaches the ratio, and none left a model that still predicts text.",
            "Ask for a smaller ratio, or name a method.",
        ),
        FailureCode.NOT_FINITE: FailureKind(
            "The model's numbers are not finite",
            "The model named in the message holds infinite or undefined numbers (NaN), or computes such on a text.",
            "If it is the original, its weights are damaged. If it is the result, ask for a smaller ratio.",
        ),
        FailureCode.DIVERGED: FailureKind(
            "The distillation diverged",
            "The training loss diverged more than once, although the learning rate was halved each time.",
            "Lower distillation.learning_rate.",
        ),
        FailureCode.VERIFICATION_FAILED: FailureKind(
            "The finished checkpoint does not verify",
            "A fresh process could not open the checkpoint, or it computed other numbers than were recorded. Nothing "
            "was published.",
            "This is a fault of the service: report the job's id and recipe to its operator.",
        ),
        FailureCode.QUALITY_GATE: FailureKind(
            "The result misses the recipe's gate",
            "The job is complete, but its result is worse than the gate allows. Its files can be downloaded.",
            "Ask for a smaller ratio, add distillation, or loosen the gate.",
        ),
        FailureCode.UNKNOWN_TASK: FailureKind(
            "There is no such task",
            "lm-eval knows no task, group or tag of this name on the worker.",
            "Check the name. The operator can add tasks in MODELPRESS_TASKS_DIR.",
        ),
        FailureCode.TASK_DATA_MISSING: FailureKind(
            "A task's data is not on the worker",
            "A task reads a dataset that is not stored on the worker, and nothing is fetched while a job computes.",
            "Ask the operator to load the dataset once into the worker's HF_DATASETS_CACHE, or leave the task out.",
        ),
        FailureCode.TASK_NOT_RUNNABLE: FailureKind(
            "A task cannot run here",
            "A task is broken, or needs more than a language model and text, such as pictures or running code.",
            "Leave the task out.",
        ),
        FailureCode.MISSING_EXTRA: FailureKind(
            "The worker lacks a library",
            "The recipe asks for something that needs an optional library, which is not installed on the worker.",
            "Ask the operator to install the extra that the message names.",
        ),
        FailureCode.OUT_OF_MEMORY: FailureKind(
            "The worker has too little memory",
            "The machine or its GPU has too little memory for this model and recipe, also for a second attempt that "
            "spared it.",
            "Lower the lengths or batch sizes of the recipe, or ask the operator for a larger worker.",
        ),
        FailureCode.DISK_FULL: FailureKind(
            "The worker's disk is full",
            "No space was left on the worker's disk, for as long as the operator's "
            "MODELPRESS_STORAGE_PATIENCE_SECONDS allows.",
            "Ask the operator to free space, then post the recipe again.",
            retryable=True,
            waits=True,
        ),
        FailureCode.STORAGE_FAILED: FailureKind(
            "The worker's storage failed",
            "Reading or writing files failed, because of a broken disk or a network file system that went away, for as "
            "long as the operator's MODELPRESS_STORAGE_PATIENCE_SECONDS allows.",
            "Post the recipe again once the operator has looked at the worker's storage.",
            retryable=True,
            waits=True,
        ),
        FailureCode.TIMED_OUT: FailureKind(
            "The attempt took too long",
            "An attempt computed for longer than the operator's MODELPRESS_JOB_TIMEOUT_SECONDS allows.",
            "Ask for less work, such as fewer tokens of distillation, or ask the operator to raise the limit.",
        ),
        FailureCode.COMPUTE_KILLED: FailureKind(
            "The computing process was killed",
            "The system killed the computing process, as it does when memory runs out.",
            "Post the recipe again; if it happens again, ask the operator for a larger worker, or to limit the process "
            "with MODELPRESS_MEMORY_BYTES.",
            retryable=True,
        ),
        FailureCode.COMPUTE_CRASHED: FailureKind(
            "The computing process crashed",
            "The computing process ended without reporting a result. The message has the end of its log.",
            "Post the recipe again; if it happens again, report the job's id to the operator.",
            retryable=True,
        ),
        FailureCode.WORKER_LOST: FailureKind(
            "The workers were lost",
            "Every attempt ended because its worker stopped renewing its lease: it was killed, or lost its network.",
            "Post the recipe again once the operator has looked at the workers.",
            retryable=True,
        ),
        FailureCode.INTERNAL_ERROR: FailureKind(
            "The service has failed",
            "This is a fault of the service. Its log has details under the job's id, or under the request id in the "
            "header X-Request-Id.",
            "Report the id to the operator.",
        ),
    }
)
