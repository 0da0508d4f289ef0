"""The documentation as a site: every key is in it, links work on a code host and in the site, nothing is fetched from elsewhere."""

import doctest
import html
import importlib
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import pytest

from chatsft.arguments import ChatArguments, DataArguments, ModelArguments
from chatsft.preference.arguments import DPOArguments, GRPOArguments, PairArguments, PromptArguments
from chatsft.recipe import OF_CHAT, REPLACED

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
SITE = DOCS / "site"
ELSEWHERE = re.compile(r"""<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//""")


@pytest.fixture
def site_module(monkeypatch):
    """Import a module of docs/site, which is no package, as MkDocs does."""
    monkeypatch.syspath_prepend(str(SITE))
    return importlib.import_module


def names(*owners):
    return {name for owner in owners for name, entry in owner.__dataclass_fields__.items() if entry.init}


@pytest.mark.parametrize("module", ["recipe_keys", "pages", "docstrings", "notebooks"])
def test_examples_in_the_code_of_the_site_hold(site_module, module):
    outcome = doctest.testmod(site_module(module))
    assert outcome.attempted and not outcome.failed


def test_every_recipe_key_is_in_the_page_once_and_explained(site_module):
    recipe_keys = site_module("recipe_keys")
    marked = recipe_keys.MARKER.findall((DOCS / "recipe_keys.md").read_text())
    assert sorted(marked) == sorted([*recipe_keys.TABLES, "replaced"])
    tables = {table: list(recipe_keys.list_keys(table)) for table in recipe_keys.TABLES}
    listed = {table: [key.name for key in keys] for table, keys in tables.items()}
    train = [*listed["model"], *listed["data"], *listed["training"], *listed["transformers"]]
    assert len(train) == len(set(train))
    assert {*train, *REPLACED, *OF_CHAT} == names(ModelArguments, DataArguments, ChatArguments) | REPLACED.keys()
    assert {*listed["pairs"], *listed["dpo"]} == names(PairArguments) | names(DPOArguments) - names(ChatArguments)
    assert {*listed["prompts"], *listed["grpo"]} == names(PromptArguments) | names(GRPOArguments) - names(ChatArguments)
    assert [key.name for keys in tables.values() for key in keys if not key.meaning] == []


def test_a_table_gives_types_defaults_and_our_own_words(site_module):
    recipe_keys = site_module("recipe_keys")
    page = recipe_keys.fill_tables("Data\n\n<!-- keys: data -->\n\n<!-- keys: transformers -->")
    assert "| `train_mixture` | list | required | list of entries, {task: GSM8K, split: train, repeat: 2} or {path: my.jsonl}. |" in page
    assert "| `max_length` | int | `2048` | tokens a conversation or a packed row may have; longer conversations are cut. |" in page
    assert "| `max_grad_norm` | float | `0.0` | Maximum gradient norm for gradient clipping. |" in page
    assert "<!--" not in page


def test_a_key_that_nobody_explained_is_found(site_module, monkeypatch):
    recipe_keys = site_module("recipe_keys")

    @dataclass
    class MoreArguments:
        """More.

        Args:
            told: of which
                there is more.
        """

        told: list[str] = field(default_factory=lambda: ["a"])
        untold: int | None = None

    MoreArguments.__module__ = "chatsft.arguments"
    monkeypatch.setitem(recipe_keys.TABLES, "more", MoreArguments)
    monkeypatch.setattr(recipe_keys, "NOT_OURS", ())
    assert list(recipe_keys.list_keys("more")) == [recipe_keys.Key("told", "list of str", "[a]", "of which there is more.")]
    monkeypatch.setattr(recipe_keys, "NOT_OURS", ("more",))
    assert list(recipe_keys.list_keys("more")) == [recipe_keys.Key("untold", "int", "null", "")]


def test_docstrings_keep_examples_and_brackets(site_module):
    to_markdown = site_module("docstrings").to_markdown
    assert to_markdown("Add.\n\n>>> 1 + 1\n2\n\nDone.") == "Add.\n\n```pycon\n>>> 1 + 1\n2\n```\n\nDone."
    assert to_markdown("rows[a][b], `rows[a][b]`\n\n    run [a] [b]\n") == "rows[a]\\[b], `rows[a][b]`\n\n    run [a] [b]\n"


def test_links_leave_docs_for_files_that_exist():
    sources = list(DOCS.rglob("*.md"))
    targets = [(page.name, target) for page in sources for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text())]
    assert len(targets) > 20
    assert [(page, target) for page, target in targets if not (DOCS / target).exists()] == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(SITE / "mkdocs.yml"), "--site-dir", str(tmp_path)]
    build = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert build.returncode == 0, build.stderr
    pages = {page.relative_to(tmp_path).as_posix(): html.unescape(page.read_text()) for page in tmp_path.rglob("*.html")}
    assert [name for name, page in pages.items() if ELSEWHERE.search(page)] == []
    assert "target_examples_per_step" in pages["recipe_keys.html"] and "<!-- keys" not in pages["recipe_keys.html"]
    assert "source/chatsft/optim/distributed.py.html" in pages["distributed.html"]
    assert "Return the factor on every learning rate" in re.sub(r"<[^>]+>", "", pages["reference/optim.html"])
    notebook = pages["notebooks/masks.html"]
    assert notebook.count("<svg") >= 3 and "49 tokens, 24 trained" in notebook and "../source/" not in notebook.split("This page is")[1]
    assert 'href="notebooks/masks.html"' in pages["index.html"] and 'href="../concepts.html"' in notebook
    assert (tmp_path / "notebooks" / "masks.ipynb").read_bytes() == (DOCS / "notebooks" / "masks.ipynb").read_bytes()
    missing = [page.stem for page in DOCS.glob("*.md") if f"{page.stem}.html" not in pages]
    assert missing == []
    assert [page.name for page in tmp_path.rglob("*.py")] == []


def test_examples_of_the_concepts_print_what_the_page_shows(monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    page = (DOCS / "concepts.md").read_text()
    [(code, shown)] = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", page, re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out == shown
    session = "\n".join(re.findall(r"```pycon\n(.*?)```", page, re.DOTALL))
    test = doctest.DocTestParser().get_doctest(session, {}, "concepts.md", None, 0)
    assert doctest.DocTestRunner().run(test) == doctest.TestResults(failed=0, attempted=3)


@pytest.mark.slow
def test_a_link_to_a_file_that_is_not_there_fails_the_build(tmp_path):
    page = DOCS / "test_of_a_broken_link.md"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(SITE / "mkdocs.yml"), "--site-dir", str(tmp_path)]
    page.write_text("# Page\n\n[file](../recipes/nowhere.yaml)\n")
    try:
        build = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    finally:
        page.unlink()
    assert build.returncode == 1
    assert "recipes/nowhere.yaml, which does not exist" in build.stderr


def test_a_notebook_becomes_a_page_with_its_code_and_all_that_it_shows(site_module, tmp_path):
    outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="\033[92ma<b\033[0m\n\nc\n"),
        nbformat.v4.new_output("display_data", data={"image/svg+xml": "<svg>\n\n</svg>", "text/plain": "a picture"}),
        nbformat.v4.new_output("display_data", data={"text/html": "<i>d</i>", "text/plain": "d"}),
        nbformat.v4.new_output("execute_result", execution_count=1, data={"text/plain": "[1, 2]"}),
    ]
    cells = [
        nbformat.v4.new_markdown_cell("# Title\n\n[b](b.ipynb)"),
        nbformat.v4.new_code_cell("run()", outputs=outputs),
        nbformat.v4.new_code_cell("%%writefile a.yaml\na: 1"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    page = site_module("notebook_pages").to_markdown(tmp_path / "a.ipynb")
    parts = [
        "# Title",
        "```python\nrun()\n```",
        '<span class="ansi-green-intense-fg">a&lt;b</span>\n\nc',
        "<svg>\n\n</svg>",
        "<i>d</i>",
        "[1, 2]",
    ]
    places = [page.index(part) for part in [*parts, "```yaml\n%%writefile a.yaml\na: 1\n```", '<a href="a.ipynb" download>']]
    assert places == sorted(places)
    assert "a picture" not in page
    assert (
        site_module("pages").NOTEBOOK_LINK.sub(r"\1.md", "[b](b.ipynb#c) [d](https://e.org/f.ipynb)")
        == "[b](b.md#c) [d](https://e.org/f.ipynb)"
    )
