"""Every command in README, CONTRIBUTING and docs: run where that takes seconds, else looked over.

Snakemake's are read by its own parser, their configuration is checked and their targets are looked
up; those of blocks are run dry, without any data. Scripts are asked for their help, which must name
the options used. The rest stands below, with the reason why it is not run.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from helpers import REPOSITORY

from ciss import config as configuration
from ciss import experiments
from ciss.errors import CissError

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]
PAGES += sorted((REPOSITORY / "docs").glob("*.md"))

#: programs that are not run here, and why
NOT_RUN = {
    "cd": "of the shell",
    "$EDITOR": "opens an editor",
    "tmux": "opens a terminal",
    "wget": "downloads 900 MB",
    "csDownload": "asks for a login",
    "tar": "unpacks what has come from another machine",
    "git": "the address of the repository is the reader's",
    "source": "of the shell",
    "sinfo": "needs a SLURM",
    "sacctmgr": "needs a SLURM with accounting",
    "scancel": "needs a SLURM",
    "docker": "needs a daemon; tests/test_house.py compares the definition",
    "apptainer": "is rarely installed; tests/test_house.py compares the definition",
    "apt": "installs programs",
    ".ci/run": "runs these tests",
}
#: commands that other tests run, or that a page's example must be written for first
ELSEWHERE = {
    "snakemake --configfile fields.yaml -n fields_2-2_mib_awt": "tests/test_own_data.py",
    "snakemake --configfile fields.yaml --cores 2 -- fields_2-2_mib_awt": "tests/test_own_data.py",
    "snakemake --configfile mine.yaml -n fields_2-1_mib_awt": "tests/test_add_a_method.py",
    "snakemake -n shapes_10-5_cosine_awt": "tests/test_add_a_method.py",
    "snakemake --configfile configs/demo.yaml --cores 2 -- shapes_10-5_cosine": (
        "tests/test_add_a_method.py"
    ),
    "snakemake -n voc_15-1_mib_blend": "tests/test_add_a_method.py",
    "snakemake plan voc_15-1_mib_awt": "tests/test_workflow.py",
    "snakemake --list": "tests/test_workflow.py",
    "snakemake paper": "tests/test_workflow.py",
}
#: options with which Snakemake does something else than run jobs, or needs what is not here
NOT_DRY = {
    "--report": "embeds files that must be there; tests/test_workflow.py makes one",
    "--touch": "changes files in place of running; tests/test_workflow.py does so",
    "--sdm": "asks for conda",
}
#: words that stand for something, and what is put in their place
PLACEHOLDERS = {
    "NAME": "voc",
    "EXPERIMENT": "voc_15-1_mib_awt",
    "EXPERIMENT...": "voc_15-1_mib_awt",
}


class Command(NamedTuple):
    page: str
    words: tuple[str, ...]
    #: in a block of commands, not within a sentence
    in_block: bool

    @property
    def text(self) -> str:
        return shlex.join(self.words)


def blocks(text: str) -> Iterator[list[str]]:
    """Indented blocks, and fenced ones without a language or of a shell."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        if language in ("", "sh", "bash", "console"):
            yield block.splitlines()
    rest = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    for block in re.findall(r"(?:^    .*\n)+", rest, re.MULTILINE):
        yield [line.strip() for line in block.splitlines()]


def split_words(line: str) -> Iterator[tuple[str, ...]]:
    """The commands of a line, without what is set before a program."""
    for part in line.split("&&"):
        words = shlex.split(part, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        if words:
            yield (words[0].removeprefix(".venv/bin/"), *words[1:])


KNOWN = {"snakemake", "make", "python", "torchrun", "pip", *NOT_RUN}


def is_command(line: str) -> bool:
    found = re.match(r"(?:[A-Z_]+=\S* )*(?:\.venv/bin/)?([\w./-]+)(?= |$)", line)
    return found is not None and found[1] in KNOWN


def commands() -> list[Command]:
    found = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for block in blocks(text):
            if not any(map(is_command, block)):
                continue
            for line in "\n".join(block).replace("\\\n", " ").splitlines():
                found += [Command(path.name, words, True) for words in split_words(line)]
        prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        prose = re.sub(r"^    .*$", "", prose, flags=re.MULTILINE)
        for span in re.findall(r"`([^`]+)`", prose):
            line = " ".join(span.split())
            if is_command(line) and " " in line:
                found += [Command(path.name, words, False) for words in split_words(line)]
    return list(dict.fromkeys(found))


COMMANDS = commands()


def of(*programs: str) -> list[Any]:
    chosen = [c for c in COMMANDS if c.words[0] in programs]
    return [pytest.param(c, id=f"{c.page}: {c.text}") for c in chosen]


def test_every_command_is_known() -> None:
    """A new program in a block of commands is run here, or listed with a reason."""
    unknown = [f"{c.page}: {c.text}" for c in COMMANDS if c.words[0] not in KNOWN]
    assert unknown == []
    assert len(COMMANDS) > 80
    used = {c.words[0] for c in COMMANDS}
    assert set(NOT_RUN) - used - {".ci/run", "scancel"} == set()
    texts = {c.text for c in COMMANDS}
    assert [text for text in ELSEWHERE if text not in texts] == []
    for path in ELSEWHERE.values():
        assert (REPOSITORY / path).is_file()


# --- make, pip, Python -------------------------------------------------------------------------


@pytest.mark.parametrize("command", of("make"))
def test_make_has_the_target(command: Command) -> None:
    text = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for word in command.words[1:]:
        if "=" in word:
            assert f"$({word.partition('=')[0]})" in text, word
        else:
            assert re.search(rf"^{word}:", text, re.MULTILINE), word


@pytest.mark.parametrize("command", of("pip"))
def test_pip_finds_what_it_is_asked_for(command: Command) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    words = command.words
    for before, word in itertools.pairwise(words):
        if before in ("-c", "--constraint"):
            assert (REPOSITORY / word).is_file()
    for extra in re.findall(r"\[(\w+)\]", command.text):
        assert extra in project["optional-dependencies"], extra


@functools.cache
def help_of(script: str, *leading: str) -> str:
    path = REPOSITORY / script
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(sys, "argv", [str(path), *leading, "--help"])
        patch.setattr(sys, "path", [str(path.parent), str(REPOSITORY), *sys.path])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    return said.getvalue()


@pytest.mark.parametrize("command", of("python", "torchrun"))
def test_scripts_have_the_options(command: Command) -> None:
    words = list(command.words[1:])
    if command.words[0] == "torchrun":
        words = words[words.index("--") + 1 :]
    if words[0] == "-m":
        if words[1] == "pytest":
            paths = [word for word in words[2:] if word.endswith(".py")]
            assert paths
            assert all((REPOSITORY / path).is_file() for path in paths)
            return
        words = [f"{words[1]}/__main__.py", *words[2:]]
    script, *given = words
    first = next((n for n, word in enumerate(given) if word.startswith("-")), len(given))
    # A word before the options may name a part of the script with options of its own.
    text = help_of(script)
    if given[:first] and re.search(rf"^    {given[0]}\b", text, re.MULTILINE):
        text = help_of(script, given[0])
    for word in given:
        if word.startswith("--"):
            assert re.search(rf"(?<![\w-]){word}(?![\w-])", text), f"{script} has no {word}"


# --- Snakemake ---------------------------------------------------------------------------------


def read(command: Command) -> Any:
    """What Snakemake's own parser makes of a command."""
    import snakemake.cli

    words = [PLACEHOLDERS.get(word, word) for word in command.words[1:]]
    words = [re.sub(r"(?<=prepare_)NAME|^NAME(?=_partial)", "voc", word) for word in words]
    parser = snakemake.cli.get_argument_parser()
    parser.exit_on_error = False
    return parser.parse_args(words)


def configured(arguments: Any) -> configuration.Config:
    """The configuration that a command has, checked."""
    import snakemake.cli

    files = [REPOSITORY / "config.yaml", *map(Path, arguments.configfile or [])]
    config: configuration.Config = {}
    for path in files:
        content = yaml.safe_load((REPOSITORY / path).read_text(encoding="utf-8"))
        config = configuration.merged(config, content)
    given = snakemake.cli.parse_config(arguments.config)
    return configuration.checked(configuration.merged(config, given))


def rule_names(config: configuration.Config) -> set[str]:
    names = {f"prepare_{name}" for name in config["datasets"]}
    for path in (REPOSITORY / "rules").glob("*.smk"):
        text = path.read_text(encoding="utf-8")
        names |= set(re.findall(r"^ *(?:use rule \w+ as |rule )(\w+)", text, re.MULTILINE))
    return names


def check_target(config: configuration.Config, target: str) -> None:
    name = target.removesuffix(configuration.PARTIAL)
    if name in {*config["matrices"], *rule_names(config)} or target.startswith("results/"):
        return
    experiments.parse_experiment(config, name)


@pytest.mark.parametrize("command", of("snakemake"))
def test_snakemake_understands_the_command(command: Command) -> None:
    if command.text in ELSEWHERE:
        return
    arguments = read(command)
    config = configured(arguments)
    for target in arguments.targets:
        check_target(config, target)
    for profile in arguments.profile or []:
        assert (REPOSITORY / profile / "config.yaml").is_file()
    # What may be misspelled; Snakemake itself says so only once a job of it is to be run.
    for rule in arguments.forcerun or []:
        check_target(config, rule)
    for rule in arguments.set_threads or {}:
        assert rule in rule_names(config)


def test_a_wrong_command_would_be_noticed() -> None:
    with pytest.raises((SystemExit, Exception), match=r"2|unrecognized"):
        read(Command("", ("snakemake", "--config-file", "x.yaml"), True))
    right = read(Command("", ("snakemake", "voc_15-1_mib_awt"), True))
    with pytest.raises(CissError, match="did you mean"):
        check_target(configured(right), "voc_15-1_mibb_awt")
    wrong = read(Command("", ("snakemake", "--config", "runtime={gpu: 4}", "--", "paper"), True))
    with pytest.raises(CissError, match="runtime"):
        configured(wrong)


def to_run_dry() -> list[list[str]]:
    """One command line for each set of configuration files, with all that is asked for with it.

    Reading the rules takes longer than planning what they are asked for. Options that belong to
    Snakemake alone its parser has checked.
    """
    asked: dict[tuple[str, ...], tuple[dict[str, str], dict[str, None]]] = {}
    for command in COMMANDS:
        skipped = command.text in ELSEWHERE or NOT_DRY.keys() & set(command.words)
        if command.words[0] != "snakemake" or not command.in_block or skipped:
            continue
        arguments = read(command)
        # Hundreds of jobs; tests/test_workflow.py plans all of them.
        if any(target.startswith("paper") for target in arguments.targets):
            continue
        files = tuple(map(str, arguments.configfile or []))
        config, targets = asked.setdefault(files, ({}, {}))
        config |= {entry.partition("=")[0]: entry for entry in arguments.config or []}
        targets |= dict.fromkeys(arguments.targets)
    return [
        [
            *("-n", *(("--configfile", *files) if files else ())),
            *(("--config", *config.values()) if config else ()),
            *("--", *targets),
        ]
        for files, (config, targets) in asked.items()
    ]


@pytest.mark.workflow
def test_the_commands_run_dry_without_data(clone: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clone, tmp_path / "clone", symlinks=True))
    # What predict and export ask for; a dry run looks no further than at their names.
    model = "results/voc/15-1/mib_awt/seed1/step5/model.safetensors"
    for name in ("model.safetensors", model, "photos/a.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    lines = to_run_dry()
    assert len(lines) > 2
    program = [sys.executable, str(REPOSITORY / "tests" / "dry_runs.py")]
    done = subprocess.run(
        program, cwd=folder, input=json.dumps(lines), capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert len(results) == len(lines)
    for line, (status, output) in zip(lines, results, strict=True):
        assert status == 0, (line, output)
        assert "This was a dry-run" in output or "Nothing to be done" in output, (line, output)
