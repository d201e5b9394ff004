"""Every command in the documentation is run, or is in a table of those that are not, and every example is executed."""

import doctest
import inspect
import shutil

import pytest

import hwpq_tvm

from .benchmarks import readme_picture
from .documentation.checks import check_mention
from .documentation.not_run import COMMANDS, PYTHON_CALLS
from .documentation.pages import (
    LANGUAGES,
    PAGES,
    PYTHON,
    README,
    ROOT,
    SHELL,
    anchors,
    blocks,
    commands,
    links,
    mentions,
)
from .documentation.scratch import Reader, prepare

NAMES = {page: str(page.relative_to(ROOT)) for page in PAGES}
each_page = pytest.mark.parametrize("page", PAGES, ids=NAMES.get)


@pytest.fixture(scope="module")
def after_readme(tmp_path_factory):
    """The reader who did everything that the README says: where the other pages go on."""
    folder = tmp_path_factory.mktemp("readme")
    prepare(folder)
    reader = Reader(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        reader.follow(README)
    return reader


@each_page
def test_a_reader_who_follows_it_gets_there(page, after_readme, tmp_path, monkeypatch):
    if page == README:
        return  # the fixture did
    folder = shutil.copytree(after_readme.folder, tmp_path / "scratch")
    monkeypatch.chdir(folder)
    Reader(folder, after_readme.built).follow(page)


def test_the_example_in_help_runs(after_readme, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(after_readme.folder, tmp_path / "scratch"))
    arguments = inspect.signature(hwpq_tvm.build)

    def build(*given, **named):
        """What the README built: another build would take longest."""
        arguments.bind(*given, **named)
        return hwpq_tvm.load("small")

    monkeypatch.setattr(hwpq_tvm, "build", build)
    names = {}
    for example in doctest.DocTestParser().get_examples(hwpq_tvm.__doc__):
        exec(compile(example.source, "hwpq_tvm.__doc__", "exec"), names)
    assert names["answer"] == names["again"]


@each_page
def test_commands_in_sentences_name_what_there_is(page):
    for mention in mentions(page):
        check_mention(mention)


@each_page
def test_blocks_say_what_they_are(page):
    unknown = [block.where for block in blocks(page) if block.language not in LANGUAGES]
    assert not unknown, f"no language of {', '.join(LANGUAGES)}: {unknown}"


def test_the_tables_of_what_is_not_run_have_no_idle_entries():
    found = [block for page in PAGES for block in blocks(page)]
    in_shell = [each.lstrip() for block in found if block.language == SHELL for each in commands(block)]
    in_python = [block.text for block in found if block.language == PYTHON]
    assert not [start for start in COMMANDS if not any(command.startswith(start) for command in in_shell)]
    assert not [call for call in PYTHON_CALLS if not any(call in code for code in in_python)]


@each_page
def test_links_lead_somewhere(page):
    for link in links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{NAMES[page]}: {link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{NAMES[page]}: {link}: no such heading"


def test_the_readme_links_to_every_page():
    assert {ROOT / link for link in links(README)} >= {page for page in PAGES if page != README}


def test_the_picture_has_the_numbers_of_the_table():
    table = readme_picture.rows()
    assert len(table) > 5 and {row.ours for row in table} == {True, False}
    for theme in readme_picture.THEMES:
        text = (readme_picture.PICTURES / f"speed-{theme}.svg").read_text(encoding="utf-8")
        for row in table:
            for told in (row.name, f"{row.decode:g}", f"{row.prefill:g}"):
                assert f">{told}</text>" in text, f"{told}: run python -m tests.benchmarks.readme_picture"
