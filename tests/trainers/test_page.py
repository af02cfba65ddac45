"""docs/trainers.md shows what was seen and what is run."""

from __future__ import annotations

from tests.trainers import page


def test_the_page_is_what_the_command_writes():
    written = page.PAGE.read_text().split(page.BEGIN)[1].split(page.END)[0]
    assert written == page.made(page.results())
