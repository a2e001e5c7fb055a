"""Guidelines are plain text: paragraphs, "# " headings, "- " lists, **bold**; nothing else."""

import re
from html import escape
from itertools import groupby


def to_html(text: str) -> str:
    """The text as HTML that can hold no script and no link."""
    blocks = re.split(r"\n\s*\n", text.strip())
    return "\n".join(_block(block) for block in blocks if block.strip())


def _block(block: str) -> str:
    parts: list[str] = []
    for kind, lines in groupby(block.splitlines(), key=_kind):
        texts = [_inline(line.strip()) for line in lines]
        if kind == "list":
            entries = "".join(f"<li>{text[2:]}</li>" for text in texts)
            parts.append(f"<ul>{entries}</ul>")
        elif kind == "heading":
            parts += [f"<h2>{text.lstrip('# ')}</h2>" for text in texts]
        else:
            parts.append(f"<p>{'<br>'.join(texts)}</p>")
    return "".join(parts)


def _kind(line: str) -> str:
    start = line.strip()
    return "list" if start.startswith("- ") else "heading" if start.startswith("# ") else "text"


def _inline(line: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(line))
