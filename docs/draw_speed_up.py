"""Draws drawings/speed_up.svg from the table of README.md: ``python docs/draw_speed_up.py``.

A bar a row, as long as the ratio; where the table gives a range, the bar is solid up to its lower
end. The colours are those of the other drawings.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "drawings" / "speed_up.svg"
HEADER = "| | ours | torch_scatter + PyG | ratio |"

WIDTH = 460
LEFT = 14
UNIT_SPACE = 14  # beside the longest bar, for its number
TOP, ROW, BAR = 58, 68, 16

FRAME = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" \
viewBox="0 0 {width} {height}" role="img">
  <title>How many times as fast as torch_scatter and PyG, on two CPU threads</title>
  <style>
    text {{ font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; \
fill: #1f2328 }}
    .small {{ font-size: 12px }}
    .quiet {{ fill: #59636e }}
    .strong {{ font-weight: 600 }}
    .paper {{ fill: #ffffff; stroke: #d1d9e0 }}
    .ours {{ fill: #2f6fc4 }}
    .range {{ fill: #9cc3f0 }}
    .theirs {{ fill: #818b98 }}
    @media (prefers-color-scheme: dark) {{
      text {{ fill: #e6edf3 }}
      .quiet {{ fill: #a8b3bf }}
      .paper {{ fill: #15191f; stroke: #3d444d }}
      .ours {{ fill: #4b8fe2 }}
      .range {{ fill: #274d7e }}
    }}
  </style>
  <rect class="paper" x="0.5" y="0.5" width="{right}" height="{bottom}" rx="6"/>
{body}
</svg>
"""


class Row(NamedTuple):
    """A row of the table, its ratio as lower and upper end."""

    case: str
    ours: str
    theirs: str
    low: float
    high: float
    ratio: str


def read_table(text: str) -> list[Row]:
    """The rows of the table with `HEADER` in a Markdown text."""
    table = text.split(f"{HEADER}\n|---|---|---|---|\n")[1].split("\n\n")[0]
    rows = []
    for line in table.strip().splitlines():
        case, ours, theirs, ratio = (cell.strip() for cell in line.strip("|").split("|"))
        ends = [float(number) for number in re.findall(r"[\d.]+", ratio)]
        rows.append(Row(case, ours, theirs, ends[0], ends[-1], ratio))
    return rows


def draw(rows: list[Row]) -> str:
    """The picture, as SVG."""
    longest = max(row.high for row in rows)
    unit = (WIDTH - 2 * LEFT - 6.5 * max(len(row.ratio) for row in rows) - UNIT_SPACE) / longest

    def bar(kind: str, y: float, value: float, height: float) -> str:
        return (
            f'  <rect class="{kind}" x="{LEFT}" y="{y:g}" width="{value * unit:.1f}" '
            f'height="{height:g}" rx="2"/>'
        )

    def text(y: float, content: str, kind: str = "", x: float = LEFT) -> str:
        names = f' class="{kind}"' if kind else ""
        return f'  <text{names} x="{x:.1f}" y="{y:g}">{escape(content)}</text>'

    body = [
        text(24, "How many times as fast as torch_scatter + PyG", "strong"),
        text(41, "two CPU threads, float32; the short grey bars are 1", "small quiet"),
    ]
    for i, row in enumerate(rows):
        y = TOP + i * ROW
        body += [
            text(y + 13, row.case),
            bar("range", y + 19, row.high, BAR),
            bar("ours", y + 19, row.low, BAR),
            bar("theirs", y + 19 + BAR + 2, 1, 4),
            text(y + 32, row.ratio, "strong", LEFT + row.high * unit + 6),
            text(y + 54, f"{row.ours} in place of {row.theirs}", "small quiet", LEFT + unit + 8),
        ]
    height = TOP + len(rows) * ROW + 6
    return FRAME.format(
        width=WIDTH, height=height, right=WIDTH - 1, bottom=height - 1, body="\n".join(body)
    )


def main() -> None:
    """Writes the picture."""
    rows = read_table((ROOT / "README.md").read_text(encoding="utf-8"))
    PICTURE.write_text(draw(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
