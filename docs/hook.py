"""A hook of mkdocs: pages that lie elsewhere in the repository, and links as the repository has them.

Every page is written to be read in the repository too. On the site, docs/ is the root, the README is its first page,
and the READMEs of heads, patches and examples stand under their own paths. A link to a file that is no page leads into
the repository, where mkdocs.yml knows its address, and is plain text where not.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ELSEWHERE = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "tests/benchmarks/README.md"),
    *("heads/*.md", "heads/*/*.md", "patches/*.md", "patches/*/*.md", "examples/*/README.md"),
)
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_NAMED_FENCE = re.compile(r"^(```\w+) \w+$", re.MULTILINE)
"""heads/README.md gives its blocks names for the tests."""


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that do not lie in docs/."""
    for pattern in ELSEWHERE:
        for path in sorted(ROOT.glob(pattern)):
            name = site_name(path.relative_to(ROOT).as_posix())
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as they are on the site."""
    source = Path(page.file.abs_src_path).relative_to(ROOT).as_posix()
    markdown = _NAMED_FENCE.sub(r"\1", markdown)
    here = posixpath.dirname(page.file.src_uri)

    def link(match: re.Match[str]) -> str:
        target, hash_mark, anchor = match[1].partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not target or ":" in target or not (ROOT / path).exists():  # mkdocs says what leads nowhere
            return match[0]
        if (ROOT / path / "README.md").is_file():
            path = f"{path}/README.md"
        name = site_name(path)
        if files.get_file_from_path(name) is not None:
            return f"]({posixpath.relpath(name, here or '.')}{hash_mark}{anchor})"
        address = config["repo_url"]
        return f"]({address.rstrip('/')}/blob/HEAD/{path})" if address else f"]({NOWHERE})"

    return re.sub(r"\[([^\[\]]+)\]\(" + NOWHERE + r"\)", r"\1", _LINK.sub(link, markdown))


NOWHERE = "in-the-repository"


def site_name(path: str) -> str:
    """The name on the site of a file of the repository."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")
