"""Render the notebooks for readers.

`render.py readme` writes README.md from nbs/index.ipynb, `render.py record` a table of docs/reference/formats.md;
`render.py pages` fills _docs/ for mkdocs, which also loads this
file as a hook that orders the navigation and keeps code out of the search. The pages of docs/ are taken as they are, but for
the options of their fences; the reference is written from the code, and the notebooks stand below built/. Cells marked `#| hide` or tagged `hide` and
nbdev's directive lines are left out.
"""

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import nbformat
from jinja2 import DictLoader
from markdown.extensions.toc import slugify
from nbconvert import MarkdownExporter
from nbconvert.filters import strip_ansi
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
NOTEBOOKS = ROOT / "nbs"
PAGES = ROOT / "_docs"
IMAGES = "docs/images"
SCREENSHOTS = "ui-*.png"  # Among them: taken by hand, and shown by links
STAGES = ["train", "package", "release", "serve", "watch", "scaffold", "jupyter", "ui", "cli", "examples"]
TITLES = {"ui": "UI", "cli": "CLI"}  # Where a capital letter does not do
# What a code host shows best comes first.
PREFERRED = ["text/markdown", "image/png", "image/svg+xml", "text/html", "text/plain"]
GUIDES = ["CONTRIBUTING.md", "CHANGELOG.md"]
BUILT = "built"  # The folder of the notebooks on the site
ORDER = {
    "How-to guides": "guides",
    "Reference": "reference",
    "Explanation": "explanation",
    "Migration": "migration",
}
TITLE = re.compile(r"^# (.+)$", re.MULTILINE)

HIDE = re.compile(r"^#\|[ \t]*hide[ \t]*$", re.MULTILINE)
DIRECTIVES = re.compile(r"^#\|.*\n?", re.MULTILINE)
STYLE = re.compile(r"<style\b.*?</style>\s*", re.DOTALL)
# A Markdown link or image whose target is a path: no scheme, no anchor alone, not absolute.
RELATIVE_LINK = re.compile(r"\[([^\]]*)\]\((?![a-z]+:|[#/])([^)#\s]+)(#[^)\s]*)?\)")

ANCHOR = re.compile(r"\]\(#([^)\s]+)\)")
# Fences that no cell ends, and outputs that a reader tells from code.
PAGE = """{% extends 'markdown/index.md.j2' %}
{% block input %}
`````python
{{ cell.source }}
`````
{% endblock input %}
{% block stream %}
````` { .text .output }
{{ output.text | trim('\n') }}
`````
{% endblock stream %}
{% block data_text scoped %}
````` { .text .output }
{{ output.data['text/plain'] | trim('\n') }}
`````
{% endblock data_text %}
{% block data_html scoped %}
<div class="output">
{{ output.data['text/html'] }}
</div>
{% endblock data_html %}
"""

LinkWriter = Callable[[str, PurePosixPath, str], str]


def published(path: Path, write_link: LinkWriter) -> nbformat.NotebookNode:
    """Return the notebook at `path` as a reader sees it, every relative link passed through `write_link`."""
    notebook = nbformat.read(path, as_version=4)
    cells = []
    for cell in notebook.cells:
        if "hide" in cell.metadata.get("tags", []) or (cell.cell_type == "code" and HIDE.search(cell.source)):
            continue
        if cell.cell_type == "markdown":
            cell.source = RELATIVE_LINK.sub(lambda link: _relink(link, path.parent, write_link), cell.source)
        if cell.cell_type == "code":
            cell.source = DIRECTIVES.sub("", cell.source).strip("\n")
            cell.outputs = [output for output in cell.outputs if not _is_record(output)]
            for output in cell.outputs:
                _clean_output(output)
        if cell.source or cell.get("outputs"):
            cells.append(cell)
    notebook.cells = cells
    return notebook


def readme() -> tuple[str, dict[str, bytes]]:
    """Return the text of README.md, and its images by their path from the root."""
    notebook = published(NOTEBOOKS / "index.ipynb", lambda text, target, anchor: f"[{text}]({target}{anchor})")
    notebook.metadata["language_info"] = {"name": "python"}  # nbdev-clean drops it; the code fences name it
    exporter = MarkdownExporter(config=Config({"NbConvertBase": {"display_data_priority": PREFERRED}}))
    text, resources = exporter.from_notebook_node(notebook, {"unique_key": "readme", "output_files_dir": IMAGES})
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n", resources.get("outputs", {})


def write_readme() -> None:
    """Write README.md and its images, and delete the images it no longer shows."""
    text, images = readme()
    for path in (ROOT / IMAGES).glob("*"):
        if not path.match(SCREENSHOTS):
            path.unlink()
    for name, content in images.items():
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).write_bytes(content)
    (ROOT / "README.md").write_text(text, encoding="utf-8")


def write_record() -> None:
    """Write the table of a run's record into the page of formats."""
    sys.path.insert(0, str(DOCS))
    from generate import with_record

    formats = DOCS / "reference" / "formats.md"
    formats.write_text(with_record(formats.read_text(encoding="utf-8")), encoding="utf-8")


def write_pages() -> None:
    """Fill _docs/: the pages of docs/, the reference, the notebooks with the files they show, and the guides."""
    sys.path.insert(0, str(DOCS))
    from generate import write_reference
    from snippets import read_page, script, shown

    shutil.rmtree(PAGES, ignore_errors=True)
    hidden = shutil.ignore_patterns(".*", "_*", "*.ipynb")
    shutil.copytree(NOTEBOOKS, PAGES / BUILT, ignore=hidden)
    _write_notebooks()
    for guide in GUIDES:
        shutil.copy(ROOT / guide, PAGES / guide)
    for path in DOCS.rglob("*"):
        page = PAGES / path.relative_to(DOCS)
        if path.suffix in (".md", ".css", ".js", ".svg", ".png"):
            page.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, page)
    write_reference(PAGES / "reference")
    for page in [*PAGES.glob("*.md"), *(page for folder in ORDER.values() for page in (PAGES / folder).glob("*.md"))]:
        if page.name not in GUIDES:
            page.write_text(shown(page.read_text(encoding="utf-8")), encoding="utf-8")
    (PAGES / "tutorial.sh").write_text(script(read_page(DOCS / "tutorial.md", DOCS)), encoding="utf-8")


def _write_notebooks() -> None:
    """Write each notebook as a page of Markdown, which mkdocs renders in a tenth of the time that a page of nbconvert takes."""
    exporter = MarkdownExporter(
        config=Config({"NbConvertBase": {"display_data_priority": PREFERRED}}),
        extra_loaders=[DictLoader({"page.md.j2": PAGE})],
        template_file="page.md.j2",
    )
    for path in _notebooks():
        page = (PAGES / BUILT / path.relative_to(NOTEBOOKS)).with_suffix(".md")
        page.parent.mkdir(parents=True, exist_ok=True)
        notebook = published(path, _page_link(path))
        for cell in notebook.cells:
            if cell.cell_type == "markdown":  # a code host keeps capitals in the name of a heading, mkdocs does not
                cell.source = ANCHOR.sub(lambda link: f"](#{slugify(link[1], '-')})", cell.source)
        text, resources = exporter.from_notebook_node(
            notebook, {"unique_key": page.stem, "output_files_dir": f"{page.stem}_files"}
        )
        page.write_text(text, encoding="utf-8")
        for name, content in resources.get("outputs", {}).items():
            (page.parent / name).parent.mkdir(exist_ok=True)
            (page.parent / name).write_bytes(content)


def on_page_content(html: str, *, page: Any, **_: Any) -> str:
    """Let the search find the prose of a notebook: with its code and outputs, the index would be several times as large."""
    if not page.file.src_uri.startswith(f"{BUILT}/"):
        return html
    return re.sub(r'<div(?= class="[^"]*\b(?:highlight|output)\b)', "<div data-search-exclude", html)


def on_config(config: Any) -> Any:
    """Order mkdocs' navigation as a reader goes: the hour, tasks, reference, why, and how it is built."""
    nav: list[Any] = ["index.md", "tutorial.md"]
    for title, folder in ORDER.items():
        nav.append({title: [f"{folder}/{name}" for name in _ordered(PAGES / folder)]})
    nav.append("comparison.md")
    pages = [path.relative_to(NOTEBOOKS) for path in _notebooks()]
    pages = [path.with_suffix(".md") for path in pages]
    built: list[Any] = [f"{BUILT}/{path.as_posix()}" for path in pages if len(path.parts) == 1]
    for stage in STAGES:
        if of_stage := [f"{BUILT}/{path.as_posix()}" for path in pages if path.parts[0] == stage]:
            built.append({TITLES.get(stage, stage.capitalize()): of_stage})
    nav.append({"How it is built": [*built, *GUIDES]})
    config["nav"] = nav
    return config


def _ordered(folder: Path) -> list[str]:
    """The pages of a folder: its index first, then as the index links to them, then the rest by title."""
    names = sorted(page.name for page in folder.glob("*.md"))
    index = folder / "index.md"
    text = index.read_text(encoding="utf-8") if index.exists() else ""
    return sorted(
        names, key=lambda name: (name != "index.md", text.find(f"({name}") if f"({name}" in text else len(text), name)
    )


def _notebooks() -> list[Path]:
    """Every notebook, nbs/index.ipynb first."""
    if os.environ.get("N2P_DOCS_NOTEBOOKS") == "0":  # a site in seconds, while pages are written
        return []
    found = [path for path in NOTEBOOKS.rglob("*.ipynb") if not any(part[0] in "._" for part in path.parts[-2:])]
    return sorted(found, key=lambda path: (path != NOTEBOOKS / "index.ipynb", path))


def _relink(link: re.Match[str], folder: Path, write_link: LinkWriter) -> str:
    """Express the target of `link`, found in a notebook in `folder`, from the root and pass it on."""
    text, target, anchor = link.groups(default="")
    from_root = os.path.relpath(folder / target, ROOT)
    return write_link(text, PurePosixPath(from_root), anchor)


def _page_link(path: Path) -> LinkWriter:
    """Return a writer of links from the page of the notebook at `path` to other pages of the site."""

    def write(text: str, target: PurePosixPath, anchor: str) -> str:
        if target.parts[0] == "nbs":
            on_site = PurePosixPath(BUILT, *target.parts[1:])
        elif str(target) in GUIDES:
            on_site = target
        else:
            return text  # a file of the repository that the site does not carry
        to = os.path.relpath(on_site, PurePosixPath(BUILT, path.parent.relative_to(NOTEBOOKS)))
        return f"[{text}]({re.sub(r'[.]ipynb$', '.md', to)}{anchor and '#' + slugify(anchor[1:], '-')})"

    return write


def _is_record(output: nbformat.NotebookNode) -> bool:
    """Whether an output is a scrap, which is for programs."""
    kinds = output.get("data", {})
    return bool(kinds) and all(kind.startswith("application/scrapbook") for kind in kinds)


def _clean_output(output: nbformat.NotebookNode) -> None:
    """Drop terminal colours, and the style sheets that code hosts print as text."""
    if "text" in output:
        output.text = strip_ansi(output.text)
    data = output.get("data", {})
    if "text/plain" in data:
        data["text/plain"] = strip_ansi(data["text/plain"])
    if "text/html" in data:
        data["text/html"] = STYLE.sub("", data["text/html"])


if __name__ == "__main__":
    {"readme": write_readme, "record": write_record, "pages": write_pages}[sys.argv[1]]()
