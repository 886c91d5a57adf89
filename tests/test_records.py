"""Records beside the results; with the real Snakemake in ``test_workflow.py``."""

from __future__ import annotations

import json
import os
import shutil
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest

from ciss import records


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with two results, of which Snakemake has notes."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write("results/voc/15/split.csv", "a split", inputs=["results/voc/index.csv"])
    inputs = ["results/voc/15/split.csv", "weights.pth"]
    write("results/voc/15/ce/seed1/step0/model.safetensors", "a model", inputs=inputs)
    return folder


def note_file(path: str) -> Path:
    return Path(".snakemake/metadata") / urlsafe_b64encode(path.encode()).decode()


def write(path: str, content: str, inputs: list[str]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(content)
    note = {"rule": "r", "input": inputs, "log": [], "params": ["1"], "code": "c"}
    note |= {"endtime": Path(path).stat().st_mtime, "shellcmd": "python /home/user/train.py"}
    note |= {"input_checksums": dict.fromkeys(inputs, "sha256:0")}
    note_file(path).parent.mkdir(parents=True, exist_ok=True)
    note_file(path).write_text(json.dumps(note))


def keep() -> None:
    records.keep(Path("results"), Path(".snakemake").absolute())


def adopt(results: str = "results") -> tuple[list[str], list[str]]:
    """Files that are not as recorded, and what was said."""
    said: list[str] = []
    changed = records.adopt(Path(results), Path(".snakemake").absolute(), said.append)
    return [str(path) for path in changed], said


def move(home: Path, target: Path, monkeypatch: pytest.MonkeyPatch, name: str = "results") -> None:
    """Copy the results, with new times, into another checkout and go there."""
    target.mkdir()
    shutil.copytree(home / "results", target / name, copy_function=shutil.copyfile)
    monkeypatch.chdir(target)


def test_records_name_no_place(home: Path) -> None:
    keep()
    text = Path("results/voc/15/ce/seed1/step0/records.json").read_text()
    assert "{here}/../../../split.csv" in text
    assert '"weights.pth"' in text
    assert "results" not in text
    assert "/home/user" not in text


def test_notes_follow_the_results_and_times_come_back(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep()
    path = "results/voc/15/ce/seed1/step0/model.safetensors"
    before = Path(path).stat().st_mtime_ns
    move(home, tmp_path / "away", monkeypatch, name="other results")
    path = path.replace("results", "other results", 1)
    os.utime(path)
    changed, said = adopt("other results")
    assert changed == []
    assert len(said) == 1
    assert Path(path).stat().st_mtime_ns == before
    note = json.loads(note_file(path).read_text())
    assert note["input"] == ["other results/voc/15/split.csv", "weights.pth"]
    assert note["input_checksums"].keys() == set(note["input"])
    assert note["params"] == ["1"]
    assert adopt("other results") == ([], [])


def test_a_results_folder_inside_another_one(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep()
    once = Path("results/voc/15/split.csv").parent / "records.json"
    text = once.read_text()
    records.keep(Path("results/voc"), Path(".snakemake").absolute())
    move(home, tmp_path / "away", monkeypatch)
    assert adopt("results/voc")[0] == []
    model = "results/voc/15/ce/seed1/step0/model.safetensors"
    note = json.loads(note_file(model).read_text())
    assert note["input"] == ["results/voc/15/split.csv", "weights.pth"]
    assert json.loads(text)["split.csv"]["made"]["input"] == ["{here}/../index.csv"]


@pytest.mark.parametrize("content", ["a nodel", "a longer model", ""])
def test_another_content_is_told_and_not_adopted(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    keep()
    move(home, tmp_path / "away", monkeypatch)
    path = "results/voc/15/ce/seed1/step0/model.safetensors"
    Path(path).write_text(content)
    before = Path(path).stat().st_mtime_ns
    assert adopt()[0] == [path]
    assert not note_file(path).exists()
    assert Path(path).stat().st_mtime_ns == before
    assert note_file("results/voc/15/split.csv").exists()


def test_what_was_made_anew_here_is_this_checkout_s_own(home: Path) -> None:
    keep()
    path = "results/voc/15/split.csv"
    write(path, "another split", inputs=[])
    os.utime(path, ns=(0, 10**18))
    note = json.loads(note_file(path).read_text()) | {"endtime": 10**9 + 0.0}
    note_file(path).write_text(json.dumps(note))
    assert adopt() == ([], [])
    assert json.loads(note_file(path).read_text()) == note
    keep()
    record = json.loads(Path("results/voc/15/records.json").read_text())["split.csv"]
    assert (record["size"], record["mtime_ns"]) == (len("another split"), 10**18)


def test_files_that_snakemake_did_not_see_are_not_recorded(home: Path) -> None:
    Path("results/voc/15/split.csv").write_text("by hand")
    os.utime("results/voc/15/split.csv", ns=(0, 10**18))
    Path("results/voc/15/ce/seed1/step0/model.safetensors").unlink()
    keep()
    assert not Path("results/voc/15/records.json").exists() or (
        json.loads(Path("results/voc/15/records.json").read_text()) == {}
    )
    assert not list(Path("results/voc/15/ce").rglob("records.json"))


def test_contents_are_read_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep()
    monkeypatch.setattr(records, "_sha256", lambda path: pytest.fail("read again"))
    before = {path: path.stat().st_mtime_ns for path in Path("results").rglob("records.json")}
    keep()
    assert adopt() == ([], [])
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_paths_longer_than_a_file_name_may_be(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"results/{'long-' * 30}/{'longer-' * 20}/index.csv"
    Path(path).parent.mkdir(parents=True)
    Path(path).write_text("an index")
    name = urlsafe_b64encode(path.encode()).decode()
    file = Path(".snakemake/metadata") / f"@{name[:254]}" / name[254:]
    file.parent.mkdir()
    file.write_text(json.dumps({"rule": "r", "endtime": Path(path).stat().st_mtime}))
    keep()
    move(home, tmp_path / "away", monkeypatch)
    assert adopt()[0] == []
    assert json.loads((tmp_path / "away" / file).read_text())["rule"] == "r"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"split.csv": {}}', '{"split.csv": 3}'])
def test_a_file_that_holds_no_records_is_no_obstacle(home: Path, content: str) -> None:
    Path("results/voc/15/records.json").write_text(content)
    assert adopt()[0] == []
    keep()
    assert "split.csv" in json.loads(Path("results/voc/15/records.json").read_text())


MODEL = "results/voc/15/ce/seed1/step0/model.safetensors"


def settle() -> None:
    """Begin twice: the second time finds nothing to do."""
    for _ in range(2):
        keep()
        assert adopt() == ([], [])


def test_folders_that_agreed_are_not_looked_into_again(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle()
    monkeypatch.setattr(records, "_read", lambda folder: pytest.fail(f"looked into {folder}"))
    keep()
    assert adopt() == ([], [])


def test_what_changes_in_a_folder_that_agreed_is_seen(home: Path) -> None:
    model, record = Path(MODEL), Path(MODEL).with_name(records.FILE)
    settle()
    time = model.stat().st_mtime_ns

    os.utime(model)
    adopt()
    assert model.stat().st_mtime_ns == time, "a touched file got its time back"

    settle()
    note_file(MODEL).unlink()
    adopt()
    assert note_file(MODEL).is_file(), "a lost note came back"

    settle()
    before = record.read_text()
    record.unlink()
    keep()
    assert json.loads(record.read_text()) == json.loads(before), "a lost record came back"

    settle()
    write(MODEL, "another model", inputs=[])
    keep()
    assert json.loads(record.read_text())[model.name]["size"] == len("another model")

    settle()
    model.write_text("damaged model")
    os.utime(model, ns=(time, time))
    assert adopt()[0] == [MODEL]
    assert adopt()[0] == [MODEL], "it is said each time"

    model.unlink()
    keep()
    assert json.loads(record.read_text()) == {}


def test_a_damaged_list_of_folders_that_agreed_is_made_anew(home: Path) -> None:
    settle()
    known = Path(".snakemake", records._SETTLED)
    before = json.loads(known.read_text())
    assert len(before) == 2
    known.write_text('{"results/voc/15": [1]}')
    settle()
    assert json.loads(known.read_text()) == before
