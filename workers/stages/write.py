"""Write the compressed model in every format that the recipe asks for, each into a directory of its name.

What is written here is what is measured, packaged and verified. A format is left out where it is not for what a method
left that may leave plain or factored matrices, such as `auto`.
"""

import logging
import shutil
from importlib.util import find_spec
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter

from app.contract.codes import FailureCode
from app.contract.recipe import Recipe
from workers.compression.formats import writer_of
from workers.compression.overlay import Overlay
from workers.compression.spec.formats import FORMATS, MAIN, Format
from workers.compression.spec.methods import Leaves, method_of
from workers.messages import AttemptFailed
from workers.stages import compress, inspect, names
from workers.stages.context import Context
from workers.stages.stage import Stage

log = logging.getLogger(__name__)

SIZES = "sizes.json"


class Stored(BaseModel):
    """What a written checkpoint stands for, and what its weights take on the disk."""

    model_config = ConfigDict(frozen=True)

    parameters: int
    bytes: int


_SIZES: TypeAdapter[dict[str, Stored]] = TypeAdapter(dict[str, Stored])


def require_libraries(recipe: Recipe) -> None:
    """Raise AttemptFailed, before anything was computed, where a format needs what is not installed here."""
    for form in (FORMATS[name] for name in recipe.formats):
        if form.library is not None and find_spec(form.library) is None:
            message = f"this worker cannot write {form.name}: install modelpress[{form.extra}] there"
            raise AttemptFailed(FailureCode.MISSING_EXTRA, message)


def run(context: Context, directory: Path) -> None:
    overlay = Overlay.open(inspect.model_dir(context), compress.finished_parts(context))
    wanted, stored = suitable(context.assignment.recipe, overlay), dict[str, Stored]()
    for number, form in enumerate(wanted):
        context.progress(number / len(wanted), f"writing {form.title}")
        destination = directory / form.name
        shutil.rmtree(destination, ignore_errors=True)
        written = writer_of(form.name).write(overlay, destination)
        stored[form.name] = Stored(parameters=written.parameters, bytes=written.bytes)
    (directory / SIZES).write_bytes(_SIZES.dump_json(stored))


def suitable(recipe: Recipe, overlay: Overlay) -> tuple[Format, ...]:
    """The recipe's formats, less those that are not for what a method left that may leave either kind of matrices."""
    found, left = [], Leaves.FACTORED if overlay.is_factored else Leaves.PLAIN
    for form in (FORMATS[name] for name in recipe.formats):
        reason = form.refuses(overlay.inventory, left)
        if reason is not None and method_of(recipe.method).leaves is Leaves.EITHER:
            log.warning("the result is not written as %s: %s", form.name, reason)
        else:
            found.append(form)
    return tuple(found)


def sizes(context: Context) -> dict[str, Stored]:
    """The size of what was written, by the name of its format."""
    return _SIZES.validate_json((context.results[names.WRITE] / SIZES).read_bytes())


def written(context: Context) -> tuple[Format, ...]:
    """The formats that were written, in the order of the recipe."""
    return tuple(FORMATS[name] for name in sizes(context))


def directory_of(context: Context, name: str = MAIN) -> Path:
    """Where the checkpoint in this format lies."""
    return context.results[names.WRITE] / name


STAGE = Stage(names.WRITE, run, lambda recipe, turn: 0.02)
