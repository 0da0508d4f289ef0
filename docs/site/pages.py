"""What MkDocs does beside rendering docs/*.md: the tables of recipe keys, the API reference, notebooks, links to files outside docs/.

On a code host the same pages work without it: there a link to ../chatsft/train.py is the file.
"""

import ast
import logging
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from notebook_pages import to_markdown
from recipe_keys import fill_tables

logger = logging.getLogger("mkdocs.hooks.pages")  # a warning here fails a strict build

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "chatsft"
LINK = re.compile(r"\]\((\.\./[^)\s#]*)(?:#[^)\s]*)?\)")
NOTEBOOK_LINK = re.compile(r"(\]\((?![a-z]+:)[^)\s#]*)\.ipynb")
FENCE = "`" * 8


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages for the notebooks, the API reference and files outside docs/ that a page links to, and complete the navigation."""
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        page = notebook.src_uri.removesuffix(".ipynb") + ".md"
        files.append(File.generated(config, page, content=to_markdown(Path(notebook.abs_src_path)), inclusion=InclusionLevel.INCLUDED))
    config.nav += list(more_pages(config.nav, files))
    reference = {f"reference/{name}.md": text for name, text in reference_pages()}
    for path, text in reference.items():
        files.append(File.generated(config, path, content=text))
    config.nav.append({"API reference": list(reference)})
    linked = {target for file in files.documentation_pages() for target in outside_links(file.content_string, file.src_uri)}
    for target in sorted(linked):
        if not (REPOSITORY / target).exists():
            logger.warning("a page links to %s, which does not exist", target)
            continue
        files.append(File.generated(config, source_page(target), content=show_source(target), inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the tables, and turn links to notebooks and out of docs/ to the pages that show those files."""
    folder = posixpath.dirname(page.file.src_uri)
    markdown = NOTEBOOK_LINK.sub(r"\1.md", fill_tables(markdown))

    def turn(link: re.Match) -> str:
        target = outside(link[1], page.file.src_uri)
        return f"]({posixpath.relpath(source_page(target), folder or '.')})" if target else link[0]

    return LINK.sub(turn, markdown)


def more_pages(nav: list, files: Files) -> Iterator[dict]:
    """Yield a last section with the pages that the navigation does not name, if there are any."""
    rest = sorted(file.src_uri for file in files.documentation_pages() if file.src_uri not in set(named_pages(nav)))
    if rest:
        yield {"More": rest}


def named_pages(nav: list | dict | str) -> Iterator[str]:
    """List the pages of a navigation.

    >>> list(named_pages(["index.md", {"Part": ["a.md", {"B": "b.md"}]}]))
    ['index.md', 'a.md', 'b.md']
    """
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from named_pages(entry)


def outside_links(markdown: str, page: str) -> Iterator[str]:
    """Yield the files outside docs/ that a page links to, as paths from the repository's root.

    >>> list(outside_links("[a](../chatsft/train.py) [b](tasks.md) [c](https://x.org/../y)", "evaluation.md"))
    ['chatsft/train.py']
    """
    targets = (outside(link[1], page) for link in LINK.finditer(markdown))
    return (target for target in targets if target)


def outside(link: str, page: str) -> str | None:
    """Resolve a link of a page of docs/ to a path from the root, or None if it stays in docs/."""
    target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if target == "docs" or target.startswith("docs/") else target


def source_page(target: str) -> str:
    return f"source/{target}.md"


def show_source(target: str) -> str:
    """Write a page with the text of a file, or with the names in a folder."""
    path = REPOSITORY / target
    text = "\n".join(sorted(os.listdir(path))) if path.is_dir() else path.read_text(encoding="utf-8")
    language = {".py": "python", ".yaml": "yaml", ".md": "markdown", ".cfg": "ini"}.get(path.suffix, "text")
    return f"---\nsearch:\n  exclude: true\n---\n# {target}\n\n{FENCE}{language}\n{text.rstrip()}\n{FENCE}\n"


def reference_pages() -> Iterator[tuple[str, str]]:
    """Yield name and text of the API pages: one for each module and each subpackage of chatsft, the package itself first."""
    yield "chatsft", "# chatsft\n\n::: chatsft\n    options: {show_root_heading: false}\n"
    for path in sorted(PACKAGE.iterdir()):
        modules = sorted(path.rglob("*.py")) if (path / "__init__.py").exists() else [path] if path.suffix == ".py" else []
        names = [module_name(module) for module in modules if has_text(module)]
        if names and path.stem != "__init__":
            yield path.stem, "\n\n".join([f"# chatsft.{path.stem}", *(f"::: {name}" for name in names)]) + "\n"


def module_name(path: Path) -> str:
    """Name a module as an import does.

    >>> module_name(PACKAGE / "data" / "__init__.py"), module_name(PACKAGE / "train.py")
    ('chatsft.data', 'chatsft.train')
    """
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def has_text(path: Path) -> bool:
    """Tell whether a module says what it is; only those are in the reference."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is not None
