"""Reports as one HTML page that needs nothing else: no font, no address, and no script where none may run."""

from __future__ import annotations

from typing import Any


def render(template: str, **values: Any) -> str:
    """Fill in a template that extends ``page.html``.

    Args:
        template: Its name in the folder ``templates``.
        values: What it uses; everything is escaped unless it is marked as safe.

    Returns:
        The page.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("steppe.lab.show"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
