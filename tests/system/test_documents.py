"""What is written for users is true: the README's commands run and print what it says, the manual page is whole, the demo works."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest

from isblk.cli import COMMANDS, main
from isblk.cli.options import path_options, session_options
from isblk.settings import FILE_VARIABLE, GLOBAL_SETTINGS, SETTINGS, Settings, parse
from isblk.table.entry import parse as parse_table
from isblk.table.options import OPTIONS, Kind
from support.mounts import Mounts
from support.processes import Processes, isblk
from support.waiting import free_port

ROOT = Path(__file__).parents[2]
MAN = ROOT / "man"
PAGES = sorted(path.name for path in MAN.iterdir())
SHARED = {"isblk-login.7": session_options, "isblk-paths.7": path_options}
"""Pages of options that several commands have; the page of a command describes the others itself."""
HEAVY = ("trio", "pyfuse3", "crc32c", "tabulate", "isblk.iscsi", "isblk.link", "isblk.target")


def blocks(text: str) -> list[str]:
    """The console blocks of a Markdown text."""
    return re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def shape(output: str) -> list[str]:
    """Lines of which numbers, names of this run and spacing are taken out: what is left must be as the README says."""
    plain = re.sub(r"/\S+/(?=\w+ )", "DIR/", output)
    plain = re.sub(r"socket=/\S+/", "socket=DIR/", plain)
    plain = re.sub(r"/\S+/(?=isblk\.conf)", "DIR/", plain)
    plain = re.sub(r"naa\.\w+|\b[0-9a-f]{12,16}\b", "ID", plain)
    plain = re.sub(r"\d[\d,.:]*( [KMGT]?i?B\b)?", "N", plain)
    return [" ".join(line.split()) for line in plain.splitlines()]


def test_every_command_of_the_readme_runs_and_prints_what_it_says(
    root: None, fuse: None, processes: Processes, mounts: Mounts, tmp_path: Path
) -> None:
    text = (ROOT / "README.md").read_text()
    for port in ("3260", "3261", "3262", "3263"):
        text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{free_port()}")
    script, said = ["set -e", "unset ISBLK_CONFIG"], []
    lines = "".join(blocks(text)).splitlines()
    for line in lines:
        if line.startswith(("$ ", "# ")):
            command = line[2:]
            script.append(f"echo '@@@'; {command}")
            if command.endswith("&"):  # a target: the next line waits until it says that it listens
                script[-1] = f"echo '@@@'; exec 3< <({command[:-1]}); read -r heard <&3; echo \"$heard\""
            said.append([command])
        else:
            said[-1].append(line)
    place = tmp_path / "readme"
    place.mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "isblk").write_text(f'#!/bin/sh\nexec {shlex.join(isblk())} "$@"\n')
    (tmp_path / "bin" / "isblk").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{processes.env['PATH']}"
    done = processes.run(["bash", "-c", "\n".join(script)], cwd=place, env={"PATH": path, "XDG_CONFIG_HOME": ""}, code=None)
    printed = done.stdout.split("@@@\n")[1:]
    assert done.wait() == 0, f"{said[len(printed) - 1][0]}: {done.stderr}"
    for (command, *expected), actual in zip(said, printed, strict=True):
        if command.startswith("fsck"):
            continue
        assert shape(actual) == shape("\n".join(expected)), command
    assert not done.stderr.replace("e2fsck", "").startswith("isblk"), done.stderr


@pytest.fixture
def demo(root: None, fuse: None, processes: Processes, mounts: Mounts, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment for scripts/demo, where nothing of it may be left."""
    processes.run([str(ROOT / "scripts" / "bootstrap")], seconds=200, env={"HOME": os.environ["HOME"], "PATH": os.environ["PATH"]})
    (tmp_path / "tmp").mkdir()
    yield {"TMPDIR": str(tmp_path / "tmp")}
    assert not list((tmp_path / "tmp").iterdir())
    assert not mounts.points() and not mounts.loops()
    assert not processes.strays()


@pytest.mark.deadline(300)
def test_the_demo_shows_the_whole_way_and_cleans_up(demo: dict[str, str], processes: Processes) -> None:
    done = processes.run([str(ROOT / "scripts" / "demo")], env=demo, seconds=50)
    shown = re.findall(r"^\$ (isblk \w+|\w[\w.]*)", done.stdout, re.MULTILINE)
    order = ["isblk target", "isblk discover", "isblk ls", "isblk mount", "mkfs.ext4", "mount", "isblk umount", "isblk mount", "cmp"]
    at = -1
    for step in order:
        at = shown.index(step, at + 1)
    assert "the same" in done.stdout
    assert not done.stderr


@pytest.mark.deadline(300)
@pytest.mark.parametrize(
    ("number", "step"), [(signal.SIGINT, "$ isblk ls"), (signal.SIGTERM, "$ cp -r"), (signal.SIGINT, "$ isblk status")]
)
def test_the_demo_cleans_up_when_interrupted(demo: dict[str, str], processes: Processes, number: int, step: str) -> None:
    running = processes.start([str(ROOT / "scripts" / "demo")], env=demo)
    running.wait_for(step)
    assert running.stop(number) in (130, 143)
    assert "demo: ended early" in running.stderr


@pytest.mark.parametrize("arguments", [[], *[[name] for name in COMMANDS]])
def test_help_teaches_by_example(processes: Processes, arguments: list[str]) -> None:
    said = processes.run(isblk(*arguments, "--help")).stdout
    assert f"Usage: isblk {arguments[0] if arguments else ''}" in said
    assert re.search(r"^  isblk [\w-]+( |$)", said, re.MULTILINE), "no example"
    assert processes.run(isblk(*arguments, "-h")).stdout == said


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from isblk.cli import main; main(['--help'], standalone_mode=False); print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=30).stdout
    loaded = said.splitlines()[-1].split()
    assert "click" in loaded
    assert not [name for name in loaded if name.startswith(HEAVY)]


def test_the_list_of_commands_is_that_of_the_modules() -> None:
    context = click.Context(main)
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is import_module(f"isblk.cli.{name.replace('-', '_')}").command
        assert command.name == name
    assert main.get_command(context, "no-such-command") is None


def test_a_word_that_is_no_command_is_a_usage_error(processes: Processes) -> None:
    ended = processes.run(isblk("explode"), code=2)
    assert "no such command 'explode'" in ended.stderr
    assert processes.run(isblk("--version")).stdout.startswith("isblk, version 0.")


def options(command: click.Command) -> set[str]:
    """What a command takes, as it is typed."""
    return {text for one in command.params if isinstance(one, click.Option) for text in (*one.opts, *one.secondary_opts)}


def described(page: str) -> set[str]:
    """The options that a manual page has an entry for (mentioning one is not describing it)."""
    entries = re.findall(r"^\.It (.*)$", (MAN / page).read_text(), re.MULTILINE)
    long = {f"--{name}" for entry in entries for name in re.findall(r"\bFl Fl ([a-z][\w-]*)", entry)}
    return long | {f"-{letter}" for entry in entries for letter in re.findall(r"\bFl ([a-zA-Z])(?= |$)", entry)}


def references(page: str) -> set[str]:
    """The pages that a manual page refers to."""
    return {f"{name}.{section}" for name, section in re.findall(r"\bXr (\S+) (\d)", (MAN / page).read_text())}


def examples(text: str) -> list[list[str]]:
    """Every `isblk COMMAND ...` that begins a line, as far as it is one command, in words."""
    lines = re.findall(r"^ *isblk ([a-z-]+(?: .*|$))", text.replace("\\e\n", ""), re.MULTILINE)
    return [shlex.split(re.split(r" [|&>;]", line)[0], comments=True) for line in lines]


def manual(processes: Processes, page: str = "isblk.1") -> str:
    env = {"MANWIDTH": "200", "MANPAGER": "cat", "MAN_KEEP_FORMATTING": "", "LC_ALL": "C.UTF-8"}
    shown = processes.run(["man", "--warnings=w", "-l", str(ROOT / "man" / page)], env=env)
    assert not shown.stderr, "man has warnings"
    return re.sub(r".\x08", "", shown.stdout)


@pytest.mark.parametrize("page", PAGES)
def test_a_manual_page_is_clean_is_installed_and_refers_to_pages_that_exist(processes: Processes, page: str) -> None:
    name, section = page.rsplit(".", 1)
    shown, source = manual(processes, page), (MAN / page).read_text()
    assert re.search(rf"^NAME\n     {re.escape(name)} . \S", shown, re.MULTILINE)
    assert f"\n.Dt {name.upper()} {section}\n" in source
    assert not {"SYNOPSIS", "DESCRIPTION", "SEE ALSO"} - set(shown.splitlines())
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert f"man/{page}" in setup["options.data_files"][f"share/man/man{section}"].split()
    assert not {other for other in references(page) if "isblk" in other} - set(PAGES)
    assert page == "isblk.1" or "isblk.1" in references(page)


def test_the_first_manual_page_names_every_command_and_leads_to_every_page() -> None:
    source = (MAN / "isblk.1").read_text()
    assert not {name for name, line in COMMANDS.items() if f"\n.It Xr isblk-{name} 1\n{line}\n" not in source}
    assert not set(PAGES) - references("isblk.1") - {"isblk.1"}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_manual_page_of_a_command_describes_its_options_and_no_others(name: str) -> None:
    command, page = main.get_command(click.Context(main), name), f"isblk-{name}.1"
    assert command is not None
    elsewhere = [described(shared) for shared in SHARED if shared in references(page)]
    assert not options(command) - described(page).union(*elsewhere)
    assert not described(page) - options(command)


@pytest.mark.parametrize("page", SHARED)
def test_options_that_commands_share_are_described_in_one_place(page: str) -> None:
    command = click.command()(SHARED[page](lambda **_: None))
    assert options(command) == described(page)


@pytest.mark.parametrize("place", [*PAGES, *COMMANDS])
def test_every_example_can_be_typed(place: str) -> None:
    context = click.Context(main)
    command = main.get_command(context, place)
    if command is None:
        text = "".join(re.findall(r"^\.Bd -literal.*?^\.Ed$", (MAN / place).read_text(), re.MULTILINE | re.DOTALL))
    else:
        text = command.help or ""
    found = examples(text)
    assert found or place.endswith(".5"), "no example"
    for name, *words in found:
        typed = main.get_command(context, name)
        assert typed is not None, name
        typed.make_context(name, words)


def test_the_manual_page_of_the_configuration_knows_every_setting_and_its_example_is_one(processes: Processes) -> None:
    page = manual(processes, "isblk.conf.5")
    missing = [name for name in (*SETTINGS, *GLOBAL_SETTINGS) if not re.search(rf"(?<![\w-]){name}(?![\w-])", page)]
    assert not missing
    example = page[page.index("EXAMPLES") : page.index("With this")].split("\n", 1)[1]
    found = Settings([parse(Path("isblk.conf"), textwrap.dedent(example))])
    assert found.for_target("iqn.2001-05.com.example:disks")["policy"].value == "round-robin"
    assert found.for_target("iqn.2001-05.com.example:shared")["shared"].value is True


def test_the_manual_page_of_the_table_knows_every_option_and_its_example_is_one(processes: Processes) -> None:
    page = manual(processes, "isblktab.5")
    missing = [name for name in OPTIONS if not re.search(rf"(?<![\w-]){name}(?![\w-])", page)]
    assert not missing
    example = page[page.index("EXAMPLES") : page.index("The first line is")].split("\n", 1)[1]
    found = parse_table("isblktab", textwrap.dedent(example))
    assert not found.problems
    assert [(entry.where, entry.kind) for entry in found.entries] == [
        ("/srv/lun0", Kind.FUSE),
        ("/run/isblk/1.sock", Kind.NBD),
        ("/dev/nbd0", Kind.ATTACH),
        ("/srv/my old disk", Kind.FUSE),
    ]


def test_the_manual_page_knows_the_exit_codes_variables_and_files(processes: Processes) -> None:
    from isblk import config, state
    from isblk.errors import ExitCode

    page = manual(processes)
    for code in ExitCode:
        assert re.search(rf"^     {int(code)} ", page, re.MULTILINE), code
    variables = (config.SECRET_VARIABLE, config.TARGET_SECRET_VARIABLE, state.NAME_VARIABLE, state.STATE_VARIABLE, state.RUN_VARIABLE)
    for text in (*variables, FILE_VARIABLE, str(state.SYSTEM_NAME_FILE), "/var/lib/isblk", "/run/isblk"):
        assert text in page, text
