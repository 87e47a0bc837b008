"""What the site is made of, put together before MkDocs looks: docs/, and those files of the repository that it shows.

MkDocs and its plugins know one folder. So a build begins by copying docs/ to build/docs, and beside it

- the notebooks, as Markdown with their recorded outputs;
- CONTRIBUTING.md, CHANGELOG.md and deploy/README.md;
- the component that draws traces, and the recorded traces (ui/static, ui/traces);
- a page for each source file that some page links to, with its lines numbered.

Links are written as they work in the repository, and rewritten here: ``[`Scheduler.schedule`](…/scheduler.py)`` leads
to the line where that name is defined *now*. Nobody writes down line numbers, and a name that is gone fails the build.
"""

from __future__ import annotations

import ast
import html
import logging
import posixpath
import re
from pathlib import Path

from mkdocs.utils import get_relative_url

ROOT = Path(__file__).resolve().parents[2]
STAGED = ROOT / "build" / "docs"
PAGES = {  # pages from outside docs/
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "deploy/README.md": "project/deploy.md",
    "notebooks/README.md": "notebooks/index.md",
}
ASSETS = {"ui/static/quire-trace.js": "assets/quire-trace.js", "ui/static/trace": "assets/trace", "ui/traces": "traces"}

LINK = re.compile(r"(?<!!)\[(?P<text>(?:[^\[\]\\]|\\.)*)\]\((?P<target>[^()\s]+)\)")
TRACE = re.compile(r'(<quire-trace[^>]*\bsrc=")(traces/)')
CODE = re.compile(r"^ *(```|~~~).*?^ *\1", re.M | re.S)  # what is indented may be a list's text
BREAK = re.compile(r"(?<=[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef])\n(?=[\u4e00-\u9fff])")
NAME = re.compile(r"`([A-Za-z_][\w.]*)(?:\(\))?`")
log = logging.getLogger("mkdocs.plugins.quire")


def on_config(config):
    """MkDocs' event: build/docs takes the place of docs/."""
    if Path(config.docs_dir) != STAGED:
        files = {STAGED / name: content for name, content in staged().items()}
        for path, content in files.items():
            _write(path, content)
        for path in STAGED.rglob("*"):
            if path.is_file() and path not in files:
                path.unlink()
        config.docs_dir = str(STAGED)
    else:  # the next language: names of the Python API are where its own pages have them
        config.plugins["autorefs"].__init__()
    return config


def on_page_markdown(markdown, page, config, files):
    """MkDocs' event: traces are at one place for all pages of all languages."""
    return TRACE.sub(lambda match: match[1] + get_relative_url(match[2], page.url), markdown)


def staged() -> dict[str, bytes]:
    """Every file of the site's folder, by its path in there."""
    files: dict[str, bytes] = {}
    pages: dict[str, str] = {}  # Markdown, by the path in the repository
    for path in sorted((ROOT / "docs").rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix == ".md":
            pages[name] = path.read_text("utf-8")
        elif path.is_file() and path.suffix in (".css", ".js", ".svg", ".png"):
            files[name.removeprefix("docs/")] = path.read_bytes()
    pages |= {name: (ROOT / name).read_text("utf-8") for name in PAGES if (ROOT / name).exists()}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text, figures = notebook(path)
        pages[path.relative_to(ROOT).as_posix()] = text
        files |= {f"notebooks/{name}": content for name, content in figures.items()}
    for source, target in ASSETS.items():
        for path in sorted((ROOT / source).rglob("*")) if (ROOT / source).is_dir() else [ROOT / source]:
            if path.is_file():
                inside = "" if path == ROOT / source else f"/{path.relative_to(ROOT / source).as_posix()}"
                files[target + inside] = path.read_bytes()
    sources: set[str] = set()
    for name, text in pages.items():
        files[place(name)] = relink(text, name, pages, sources).encode()
    for name in sorted(sources):
        files |= folder_pages(name) if (ROOT / name).is_dir() else {place(name): source_page(name).encode()}
    return files


def place(name: str) -> str:
    """Where a file of the repository is on the site: its path among the staged files."""
    if name in PAGES:
        return PAGES[name]
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    if name.endswith(".ipynb"):
        return name.removesuffix("ipynb") + "md"
    suffix = "/folder.html" if (ROOT / name).is_dir() else ".html"
    return f"source/{name.replace('.', '_')}{suffix}"  # no second dot: the i18n plugin would take it for a language


def relink(text: str, page: str, pages: dict[str, str], sources: set[str]) -> str:
    """The Markdown of ``page`` (its path in the repository) with its links as they are on the site.

    Files that need a page are added to ``sources``. What leads nowhere is a warning, and the build is strict.
    """
    here = posixpath.dirname(place(page))

    def link(match: re.Match[str]) -> str:
        target, _, fragment = match["target"].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        name = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
        if f"{name}/README.md" in pages:
            name += "/README.md"
        if name not in pages:
            if not (ROOT / name).exists() or name.startswith("../"):
                log.warning("%s links to %s, which is not there", page, target)
                return match[0]
            if name.startswith("docs/") and not name.endswith((".py", ".yml")):
                return match[0]
            sources.add(name)
            fragment = line_anchor(name, match["text"], fragment, page)
        elif fragment and name.endswith(".ipynb"):
            fragment = ""
        words = match["text"]
        if words == posixpath.basename(name) and name in pages:  # where GitHub's readers see a file, a title is better
            words = title(pages[name]) or words
        return f"[{words}]({posixpath.relpath(place(name), here or '.')}{'#' * bool(fragment)}{fragment})"

    def outside_code(part: str) -> str:  # a line's end within Chinese would become a space
        return BREAK.sub("", LINK.sub(link, part))

    parts, end = [], 0
    for code in CODE.finditer(text):
        parts += [outside_code(text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, outside_code(text[end:])])


def title(text: str) -> str:
    """A page's title; empty without one."""
    found = re.search(r"^# (.+)$", text, re.M)
    return found[1] if found else ""


def line_anchor(name: str, text: str, fragment: str, page: str) -> str:
    """The anchor of the line that a link into a source file means: by its text, or by GitHub's ``#L12``."""
    if fragment:
        return re.sub(r"^L(\d+)$", r"L-\1", fragment)
    symbol = NAME.fullmatch(text)
    if not name.endswith(".py") or symbol is None or symbol[1].endswith(".py"):
        return ""
    line = definition((ROOT / name).read_text("utf-8"), symbol[1])
    if line is None:
        log.warning("%s: %s defines no %s", page, name, symbol[1])
        return ""
    return f"L-{line}"


def definition(source: str, name: str) -> int | None:
    """The line of a class, function, method or assignment, by its dotted name; None if there is none."""
    body: list[ast.stmt] = ast.parse(source).body
    line = None
    for part in name.split("."):
        found = next((node for node in body if part in _names(node)), None)
        if found is None:
            return None
        line, body = found.lineno, getattr(found, "body", [])
    return line


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def source_page(name: str) -> str:
    """A source file as a page: coloured, with numbered lines that can be linked to."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import TextLexer, get_lexer_for_filename
    from pygments.util import ClassNotFound

    text = (ROOT / name).read_text("utf-8")
    try:
        lexer = get_lexer_for_filename(name)
    except ClassNotFound:
        lexer = TextLexer()
    code = highlight(
        text, lexer, HtmlFormatter(linenos="inline", linespans="L", lineanchors="L", anchorlinenos=True, wrapcode=True)
    )
    return SOURCE_PAGE.format(title=html.escape(name), up="../" * place(name).count("/"), code=code)


def folder_pages(name: str) -> dict[str, bytes]:
    """A folder as a list of its files, and a page for each of them."""
    inside = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / name).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]
    items = "".join(
        f'<li><a href="{posixpath.relpath(place(file), posixpath.dirname(place(name)))}">{html.escape(file)}</a></li>'
        for file in inside
    )
    listing = SOURCE_PAGE.format(title=html.escape(name), up="../" * place(name).count("/"), code=f"<ul>{items}</ul>")
    return {place(name): listing.encode()} | {place(file): source_page(file).encode() for file in inside}


SOURCE_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · quire</title>
<link rel="stylesheet" href="{up}assets/source.css">
<script src="{up}assets/source.js"></script>
</head>
<body>
<header><a href="{up}">quire</a> <span>{title}</span></header>
<main>{code}</main>
</body>
</html>
"""


def notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its figures by their names."""
    from nbconvert import MarkdownExporter

    folder = f"{path.stem}_files"
    resources = {"output_files_dir": folder, "unique_key": path.stem}
    text, made = MarkdownExporter().from_filename(str(path), resources=resources)
    return text, dict(made["outputs"])


def _write(path: Path, content: bytes) -> None:
    """Only what has changed, so that `mkdocs serve`, which watches the folder, comes to rest."""
    if not path.exists() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
