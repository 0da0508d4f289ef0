"""Self-contained HTML pages: one file with its style, scripts and pictures in it, which fetches nothing."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from chatsft import __version__

FOLDER = Path(__file__).parent


def render_page(template: str, **values) -> str:
    """Fill a template of this folder; what is put in is escaped."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(version=__version__, **values)


def save_page(path: str | Path, template: str, **values) -> Path:
    """Write a page; the file is there in full or as it was before."""
    path = Path(path)
    page = render_page(template, **values)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(page, encoding="utf-8")
    part.replace(path)
    return path
