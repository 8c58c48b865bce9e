"""Looks at a job that many ask for at once."""

import asyncio
from typing import Any

import pytest

from app.errors import DatabaseUnavailable, JobNotFound
from app.jobs.glances import Glances
from modelpress.contract.job import State


class Reader:
    """Counts what is asked, and answers when `let` is called."""

    def __init__(self) -> None:
        self.asked = 0
        self.gate = asyncio.Event()

    async def one(self, statement: Any, **parameters: Any) -> Any:
        self.asked += 1
        number = self.asked
        await self.gate.wait()
        if parameters["job_id"] == "job_broken":
            raise DatabaseUnavailable("it is down")
        return None if parameters["job_id"] == "job_none" else ("team", State.RUNNING, f"{number}", None, None, None)


async def asking(glances: Glances, times: int, job_id: str = "job_a") -> list[asyncio.Task[Any]]:
    """Ask as many times at once, and let the questions reach the reader."""
    tasks = [asyncio.create_task(glances.at(job_id, "team")) for _ in range(times)]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


def test_all_that_ask_at_once_share_one_look() -> None:
    async def ask() -> int:
        reader = Reader()
        tasks = await asking(Glances(reader), 50)  # type: ignore[arg-type]
        reader.gate.set()
        await asyncio.gather(*tasks)
        return reader.asked

    assert asyncio.run(ask()) == 1


def test_who_asks_while_a_job_is_looked_at_gets_the_next_look() -> None:
    async def ask() -> tuple[set[str], set[str]]:
        reader = Reader()
        glances = Glances(reader)  # type: ignore[arg-type]
        first, second = await asking(glances, 2), await asking(glances, 50)
        reader.gate.set()
        seen = [{each.version for each in await asyncio.gather(*tasks)} for tasks in (first, second)]
        assert not glances.looking and not glances.next
        return seen[0], seen[1]

    first, second = asyncio.run(ask())
    assert {version[0] for version in first} == {"1"}
    assert {version[0] for version in second} == {"2"}


def test_those_that_ask_one_after_another_while_a_job_is_looked_at_share_the_next_look() -> None:
    async def ask() -> int:
        reader = Reader()
        glances = Glances(reader)  # type: ignore[arg-type]
        tasks = [task for _ in range(5) for task in await asking(glances, 1)]
        reader.gate.set()
        await asyncio.gather(*tasks)
        return reader.asked

    assert asyncio.run(ask()) == 2


def test_who_goes_away_leaves_the_look_to_the_others() -> None:
    async def ask() -> str:
        reader = Reader()
        gone, stays = await asking(Glances(reader), 2)  # type: ignore[arg-type]
        gone.cancel()
        reader.gate.set()
        return str((await stays).owner)

    assert asyncio.run(ask()) == "team"


@pytest.mark.parametrize(("job_id", "error"), [("job_none", JobNotFound), ("job_broken", DatabaseUnavailable)])
def test_a_look_that_finds_nothing_is_told_to_all(job_id: str, error: type[Exception]) -> None:
    async def ask() -> list[Any]:
        reader = Reader()
        glances = Glances(reader)  # type: ignore[arg-type]
        first, second = await asking(glances, 2, job_id), await asking(glances, 2, job_id)
        reader.gate.set()
        return list(await asyncio.gather(*first, *second, return_exceptions=True))

    assert [type(each) for each in asyncio.run(ask())] == [error] * 4
