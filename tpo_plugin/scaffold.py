"""`tpo new-head`: the package of a head that passes the conformance kit as it is. No torch in here."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from tpo_plugin.errors import TPOError
from tpo_plugin.plugins import check_head_name, compatible_range

TEMPLATE = Path(__file__).parent / "templates" / "head"
SUFFIX = ".tmpl"


def new_head(name: str, directory: str | Path = ".") -> Path:
    """Writes the folder `tpo-head-<name>` into `directory` and returns its path.

    `name` is what the head is registered under: a lower-case identifier. Raises `TPOError` for another name or one that
    no head can have, and for a folder that is there already.
    """
    if not re.fullmatch(r"[a-z]([a-z0-9_]*[a-z0-9])?", name):
        raise TPOError(
            f"head name {name!r}: expected a lower-case identifier such as 'point', of letters a to z, digits and '_'"
        )
    check_head_name(name)
    camel = "".join(part.capitalize() for part in name.split("_"))
    values = {
        "name": name,
        "core": compatible_range(),
        "distribution": f"tpo-head-{name.replace('_', '-')}",
        "package": f"tpo_head_{name}",
        "class_name": f"{camel}Head",
        "config_name": f"{camel}Config",
    }
    folder = Path(directory) / values["distribution"]
    if folder.exists():
        raise TPOError(f"{folder} is there already; choose another name or directory, or remove it")
    for source in sorted(TEMPLATE.rglob(f"*{SUFFIX}")):
        relative = source.relative_to(TEMPLATE).as_posix().removesuffix(SUFFIX)
        target = folder / relative.replace("src/package", f"src/{values['package']}")
        target.parent.mkdir(parents=True, exist_ok=True)
        text = Template(source.read_text(encoding="utf-8")).substitute(values)
        target.write_text(text, encoding="utf-8")
    return folder
