"""Parts of an HTML page that is one file, loads nothing and runs no script.

Readable at any width, in light and dark, and in print. A click on a picture enlarges it in place:
its frame becomes the target of the page, which covers everything else, so no picture is in the
file twice.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

_STYLE = '''
:root{color-scheme:light dark;--ink:#1f2430;--soft:#5d6575;--line:#d5d9e1;--good:#0b7a75;
--bad:#b83225;--card:#fff;--back:#f6f7f9}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1000px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:25px;margin:0 0 4px;overflow-wrap:anywhere}h2{font-size:19px;margin:34px 0 8px}
h3{font-size:16px;margin:26px 0 4px}
p{margin:6px 0;overflow-wrap:break-word}.soft{color:var(--soft)}a{color:inherit}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px 18px;
margin:14px 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(250px,1fr));gap:12px;
margin:14px 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 14px}
.tile b{display:block;font-size:22px;font-weight:600}
.badge{display:inline-block;border-radius:6px;padding:1px 9px;color:#fff;font-weight:600}
.pass{background:var(--good)}.fail{background:var(--bad)}
figure{margin:14px 0;background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:10px}
figure img{width:100%;height:auto;display:block}
figure .open{display:block;cursor:zoom-in;text-decoration:none}figure .close{display:none}
.views{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:10px}
.views span{display:block;font-size:14px;padding:2px 2px 4px}
figcaption{color:var(--soft);font-size:14px;padding:6px 4px 0}
caption{text-align:left;color:var(--soft);font-size:14px;padding:2px 0}
caption span{display:inline-block;position:sticky;left:0;max-width:calc(100vw - 64px)}
figcaption .run{display:block}
figure:target{position:fixed;inset:0;z-index:1;margin:0;border:0;border-radius:0;overflow:auto;
padding:54px 10px 10px}
figure:target img{width:auto;max-width:none}figure:target .open{cursor:auto}
figure:target .views{grid-template-columns:max-content}
figure:target .close{display:block;position:fixed;top:8px;left:10px;background:var(--ink);
color:var(--card);border-radius:6px;padding:5px 14px}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:15px;font-variant-numeric:tabular-nums}
th,td{text-align:right;vertical-align:bottom;padding:4px 6px;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--back);
min-width:5.5em}
td+td{white-space:nowrap}
.card th:first-child,.card td:first-child{background:var(--card)}
th{color:var(--soft);font-weight:500}
.scroll{overflow-x:auto}
@media (max-width:640px){main{padding:18px 10px 40px}figure{padding:6px}th,td{padding:4px 5px}
table{font-size:14px}}
@media screen and (prefers-color-scheme:dark){:root{--ink:#e8eaf0;--soft:#a6aebd;--line:#3b414e;
--card:#1a1a1a;--back:#0f1115}
.plot img{filter:invert(.9) hue-rotate(180deg)}}
@media print{:root{--card:#fff;--back:#fff;--ink:#000;--soft:#444}body{font-size:11pt}
main{max-width:none;padding:0}figure,.card,.tile,tr{break-inside:avoid}
h2,h3{break-after:avoid}.scroll{overflow:visible}table{font-size:8.5pt}th,td{padding:2px 4px}
.badge{print-color-adjust:exact;-webkit-print-color-adjust:exact}
figure:target{position:static}figure .close,figure:target .close{display:none}}
'''
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_NARROW = '(max-width:640px)'


def document(title: str, parts: Sequence[str]) -> str:
    """Return a whole page; parts are HTML."""
    return ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f'<title>{escape(title)}</title><link rel="icon" href="data:,">'
            f'<style>{_STYLE}</style></head>\n<body><main>\n' + '\n'.join(parts)
            + '\n</main></body></html>\n')


def table(head: Sequence[str], rows: Iterable[Sequence[object]], caption: str = '') -> str:
    """Return a table; cells and caption are text."""
    def cells(tag: str, values: Sequence[object]) -> str:
        return ''.join(f'<{tag}>{escape(str(v))}</{tag}>' for v in values)

    body = ''.join(f'<tr>{cells("td", row)}</tr>' for row in rows)
    above = f'<caption><span>{escape(caption)}</span></caption>' if caption else ''
    return (f'<div class="scroll"><table>{above}<thead><tr>{cells("th", head)}</tr></thead>'
            f'<tbody>{body}</tbody></table></div>')


def number(value: float | None, scale: float = 1.0, digits: int = 2) -> str:
    """Return a figure, or a dash where there is none."""
    if value is None:
        return '–'
    value *= scale
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.{digits}f}'


def plot(name: str, wide: bytes, narrow: bytes, seen: str, caption: str, run: str) -> str:
    """Return a chart, PNG for a wide page and for a narrow one."""
    image = (f'<picture><source media="{_NARROW}" srcset="{_data(narrow, "png")}">'
             f'<img alt="{escape(seen)}" src="{_data(wide, "png")}"></picture>')
    return _figure(name, 'plot', image, caption, run)


def views(name: str, pictures: Sequence[tuple[str, bytes, str]], caption: str, run: str) -> str:
    """Return pictures beside each other, on a narrow page below.

    pictures: the text above each, a JPEG, and what is seen on it.
    """
    shown = ''.join(
        f'<span><span>{escape(above)}</span>'
        f'<img alt="{escape(seen)}" src="{_data(jpeg, "jpeg")}"></span>'
        for above, jpeg, seen in pictures)
    return _figure(name, 'photo', f'<span class="views">{shown}</span>', caption, run)


def _figure(name: str, kind: str, inside: str, caption: str, run: str) -> str:
    return (f'<div id="{name}"><figure id="{name}-large" class="{kind}">'
            f'<a class="open" href="#{name}-large">{inside}</a>'
            f'<a class="close" href="#{name}">Close</a>'
            f'<figcaption>{escape(caption)}<span class="run">{escape(run)}</span></figcaption>'
            '</figure></div>')


def _data(picture: bytes, kind: str) -> str:
    return f'data:image/{kind};base64,{base64.b64encode(picture).decode()}'
