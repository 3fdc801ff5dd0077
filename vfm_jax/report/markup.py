"""Small pieces of HTML that the page is put together from; every value goes through `text`."""

import base64
import html
import importlib.resources
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vfm_jax.report import plots
from vfm_jax.report.numbers import ABSENT, format_value


def text(value: Any) -> str:
    """Any value as text that is safe within HTML, attributes included."""
    return html.escape(format_value(value), quote=True)


def number(value: Any) -> float | None:
    """A number out of JSON, where it may be the string "NaN"; None for anything else."""
    try:
        return None if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` where it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def figure(content: str, caption: str, wide: bool = False) -> str:
    """`caption` is HTML of ours: one sentence on how to read the picture."""
    return f"<figure{' class=wide' if wide else ''}>{content}<figcaption>{caption}</figcaption></figure>"


def image(pixels: np.ndarray, alt: str) -> str:
    """An inlined picture (h w 3, in [0, 1]); small ones keep square pixels when the page enlarges them."""
    data, media_type = plots.encode(pixels)
    pixelated = " class=px" if max(pixels.shape[:2]) <= 64 else ""
    source = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    return f'<img{pixelated} src="{source}" alt="{text(alt)}" loading="lazy">'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML; the first column names the row."""
    top = "".join(f"<th scope=col>{cell}</th>" for cell in head)
    body = "".join(
        f"<tr><th scope=row>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in rows
    )
    top = f"<thead><tr>{top}</tr></thead>" if head else ""
    return f"<div class=scroll><table>{top}<tbody>{body}</tbody></table></div>"


def facts(pairs: Iterable[tuple[str, Any]]) -> str:
    """Names and values; those without a value are left out."""
    shown = [(name, value) for name, value in pairs if value not in (None, "", ABSENT)]
    return "<dl>" + "".join(f"<div><dt>{text(n)}</dt><dd>{text(v)}</dd></div>" for n, v in shown) + "</dl>"


def document(title: str, status: str, lead: str, warnings: str, sections: Iterable[tuple[str, str, str]]) -> str:
    """A whole page: its head, and the sections that have something to show.

    Args:
        title: HTML of ours, as are the next three.
        status: stands behind the name of the program.
        lead: what the page is about, in a paragraph.
        warnings: what is to be read first.
        sections: title (text), anchor and HTML of each.
    """
    shown = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{anchor}">{text(name)}</a>' for name, anchor, _ in shown)
    body = "".join(
        f'<section id="{anchor}"><h2>{text(name)}</h2>{content}</section>' for name, anchor, content in shown
    )
    style = importlib.resources.files("vfm_jax.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # The browser itself refuses whatever would leave this file.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title} · vfm_jax</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        f"<header><p class=kicker>vfm_jax{status}</p><h1>{title}</h1>{lead}</header>\n"
        f"{warnings}<nav>{links}</nav>\n{body}\n</main>\n</body>\n</html>\n"
    )
