"""Notebooks as pages of the site: Markdown, so that code, links and search are those of every other page."""

from functools import cache
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

TEMPLATE = r"""
{%- extends 'markdown/index.md.j2' -%}
{%- block input %}
```{{ "yaml" if ".yaml\n" in cell.source else "python" }}
{{ cell.source }}
```
{% endblock input -%}
{%- block stream %}{{ as_text(output.text) }}{% endblock stream -%}
{%- block data_text scoped %}{{ as_text(output.data['text/plain']) }}{% endblock data_text -%}
{%- block data_svg scoped %}
<div class="output">{{ output.data['image/svg+xml'] }}</div>
{% endblock data_svg -%}
{%- block data_html scoped %}
<div class="output">{{ output.data['text/html'] }}</div>
{% endblock data_html -%}
{%- macro as_text(text) %}
<div class="output"><pre>{{ text | ansi2html }}</pre></div>
{% endmacro -%}
"""
STYLE = """\
<style>
.output pre { margin: 0; padding: 0 1.9em; font-size: .61rem; line-height: 1.35; overflow-x: auto; white-space: pre-wrap; color: inherit }
.output svg { max-width: 100%; height: auto }
.ansi-green-intense-fg { color: #1a9c3e }
.ansi-red-intense-fg { color: #d6404c }
</style>
"""


@cache
def make_exporter() -> MarkdownExporter:
    return MarkdownExporter(raw_template=TEMPLATE)


def to_markdown(path: Path) -> str:
    """Write a notebook as a page: code in fences, what it printed below, pictures in their place, and at the end the notebook itself."""
    notebook = nbformat.read(path, as_version=4)
    page, _ = make_exporter().from_notebook_node(notebook)
    return f'{page.strip()}\n\n<p>This page is a notebook: <a href="{path.name}" download>{path.name}</a></p>\n\n{STYLE}'
