"""Downloads that break off, are taken up again, and never leave a wrong file in place."""

from pathlib import Path

import pytest

from modelpress.client import Client, DigestMismatch, ProblemError, ServiceUnreachable, UnexpectedAnswer
from modelpress.contract.job import Problem
from tests.support.loopback import Script

WEIGHTS = bytes(range(256)) * 1000


@pytest.fixture
def script(script: Script) -> Script:
    script.files = {"config.json": b"{}", "model.safetensors": WEIGHTS}
    return script


def ranges(script: Script) -> list[str | None]:
    return [wanted for _, path, wanted in script.requests if path.endswith("model.safetensors")]


def test_every_file_arrives_bit_for_bit_and_no_part_file_stays(script: Script, tmp_path: Path) -> None:
    with Client(script.url) as client:
        paths = client.download("job_1", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in paths} == script.files
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(script.files)


def test_a_cut_connection_is_resumed_where_it_broke(script: Script, tmp_path: Path) -> None:
    script.files = {"model.safetensors": WEIGHTS}
    script.broken_after = [100_000, 50_000]
    with Client(script.url) as client:
        (path,) = client.download("job_1", tmp_path)
    assert path.read_bytes() == WEIGHTS
    assert ranges(script) == [None, "bytes=100000-", "bytes=150000-"]


def test_a_later_run_takes_up_what_an_earlier_one_left(script: Script, tmp_path: Path) -> None:
    script.files = {"model.safetensors": WEIGHTS}
    script.broken_after = [100_000] + [0] * 50
    with Client(script.url, patience_seconds=0.3) as client, pytest.raises(ServiceUnreachable):
        client.download("job_1", tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    script.broken_after = []
    with Client(script.url) as client:
        (path,) = client.download("job_1", tmp_path)
    assert path.read_bytes() == WEIGHTS
    assert ranges(script)[-1] == "bytes=100000-"


def test_a_file_that_is_already_whole_is_not_asked_for_again(script: Script, tmp_path: Path) -> None:
    with Client(script.url) as client:
        client.download("job_1", tmp_path)
        asked = len(ranges(script))
        client.download("job_1", tmp_path)
    assert len(ranges(script)) == asked


def test_a_file_with_another_digest_is_thrown_away(script: Script, tmp_path: Path) -> None:
    script.digests = {"model.safetensors": "0" * 64}
    with Client(script.url) as client, pytest.raises(DigestMismatch, match=r"model\.safetensors"):
        client.download("job_1", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_files_in_folders_keep_their_folder(script: Script, tmp_path: Path) -> None:
    script.files = {"plots/loss.svg": b"<svg/>"}
    with Client(script.url) as client:
        client.download("job_1", tmp_path)
    assert (tmp_path / "plots" / "loss.svg").read_bytes() == b"<svg/>"


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "folder/../../outside", "..\\outside"])
def test_a_name_that_leads_out_of_the_directory_is_refused(script: Script, tmp_path: Path, name: str) -> None:
    script.files = {name: b"x"}
    with Client(script.url) as client, pytest.raises(UnexpectedAnswer, match="does not lie in"):
        client.download("job_1", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_refused_download_is_a_problem(script: Script, tmp_path: Path) -> None:
    gone = Problem(type="about:blank", title="There is no such artifact", status=404, detail="it was deleted")
    with Client(script.url) as client:
        listed = client.artifacts("job_1")
        assert listed
        script.files = {}
        script.refusals = [gone]
        with pytest.raises(ProblemError, match="it was deleted"):
            client.download("job_1", tmp_path)


def test_the_report_hears_how_far_each_file_is(script: Script, tmp_path: Path) -> None:
    sizes: dict[str, int] = {}
    with Client(script.url) as client:
        client.download("job_1", tmp_path, lambda name, size: sizes.update({name: size}))
    assert sizes == {"config.json": 2, "model.safetensors": len(WEIGHTS)}
