"""What `mkdocs build` does to a page: formulas become MathML, so that nothing is fetched to read them, and links to files of the
repository that are no pages become links to its host (`repo_url`), or plain text where there is none."""

import html
import pathlib
import re

from latex2mathml.converter import convert

_ROOT = pathlib.Path(__file__).parents[1]
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_LINK = re.compile(r"\[([^\]]+)\]\((?:\.\./)+((?:(?:benchmarks|experiments|notebooks|tests)/[^)\s]+|README\.md))\)")


def on_page_markdown(markdown: str, config, **_) -> str:
    """Links that leave the pages. Raises FileNotFoundError for one that leads nowhere."""

    def outside(found: re.Match) -> str:
        label, path = found.groups()
        if not (_ROOT / path).exists():
            raise FileNotFoundError(f"a page links to {path}, which is not there")
        return f"[{label}]({config.repo_url}/blob/main/{path})" if config.repo_url else label

    return _LINK.sub(outside, markdown)


def on_page_content(content: str, **_) -> str:
    """TeX between \\( \\) or \\[ \\] as MathML, which browsers draw themselves."""

    def formula(found: re.Match) -> str:
        kind, tex = found.groups()
        tex = html.unescape(tex).strip()
        return f'<div class="formula">{convert(tex, display="block")}</div>' if kind == "div" else convert(tex)

    return _FORMULA.sub(formula, content)
