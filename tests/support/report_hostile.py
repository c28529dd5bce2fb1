"""Runs in which every text that a record can hold is an attack on the page, a table or a spreadsheet, or too long."""

from __future__ import annotations

import base64
import itertools
import json
from pathlib import Path
from typing import Any

from report_runs import make_run

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
ATTACKS = (
    "<script>window.pwned = 1</script>",
    '"><img src=x onerror="window.pwned=1">',
    "</textarea></style></script><svg onload=window.pwned=1>",
    "=cmd|' /C calc'!A0",
    "+1+cmd|' /C calc'!A0",
    "@SUM(1+1)*cmd",
    "-2+3+cmd|x",
    "\t=1+1",
    "{{ 7 * 7 }}{% for x in y %}",
    "\\input{/etc/passwd}$x^{_&%#~ \\\\",
    "[*] [a](javascript:alert(1)) | `x` <b>",
    "a\u0000b\u202ec\ud800d",
    "W" * 180,
    "..\\..//../../up ]]> --> &amp; '",
)


def hostile_runs(root: Path) -> Path:
    """Two methods with EM and another loss over two seeds; each text field of their records is one of ATTACKS."""
    attacks = itertools.cycle(ATTACKS)
    names = {key: next(attacks) for key in ("method", "loss", "data", "model", "protocol")}
    wild = [next(attacks) for _ in range(3)]
    slices = tuple(f"{text}/5" for text in ATTACKS if "\ud800" not in text)  # no CSV file can hold half a character
    for method, loss, seed in itertools.product(("tent", names["method"]), ("em", names["loss"]), range(2)):
        errors = tuple((1 + i + 3 * (loss == "em") + seed) / 40 for i in range(len(slices)))
        folder = make_run(
            root, errors, method=method, loss=loss, seed=seed, data=names["data"], model=names["model"],
            protocol=names["protocol"], slices=slices, status="collapse" if seed else "ok", command=next(attacks),
            notes=tuple((next(attacks), next(attacks)) for _ in range(4)), params={wild[0]: wild[1]},
            flags=[{"kind": "collapse", "slice": next(attacks), "message": next(attacks)}] if seed else [],
            environment={text: text for text in ATTACKS}, config={f"protocol.{wild[2]}": wild[2]},
        )  # fmt: skip
        add_rows(folder, wild[0])
        lines = ["step,slice,metric,value"]
        lines += [f'{step},"</svg><script>window.pwned=1</script>","<b>$x$",{step / 3}' for step in range(3)]
        (folder / "series.csv").write_text("\n".join(lines) + "\n")
        (folder / "files").mkdir()
        for name, content in (('"><img src=x onerror=pwned=1>.png', PIXEL), ("{{7*7}}.gif", GIF), ("a.png", b"<b>")):
            (folder / "files" / name).write_bytes(content)
    for number, text in enumerate(ATTACKS[:3]):
        broken = root / f"{number} {text.replace('/', '')}"
        broken.mkdir()
        (broken / "result.json").write_text(json.dumps(text))
    return root


def add_rows(folder: Path, metric: str) -> None:
    """A metric of an unknown name, and a unit that is none."""
    record: dict[str, Any] = json.loads((folder / "result.json").read_text())
    record["rows"].append({"slice": "mean", "metric": metric, "value": 1.5, "unit": metric, "n": 3})
    (folder / "result.json").write_text(json.dumps(record))
