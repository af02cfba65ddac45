"""`python -m tpo_plugin` prints what `tpo heads` prints, with the core alone; `tpo` starts here."""

import sys


def tpo() -> None:
    """The command `tpo`; where a package of an extra is missing, one sentence says which."""
    from tpo_plugin.extras import MissingPackage, needed

    try:
        with needed():
            from tpo_plugin.cli import main
    except MissingPackage as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)
    main()


if __name__ == "__main__":
    from tpo_plugin.listing import as_text
    from tpo_plugin.plugins import registry

    print(as_text(registry()))
