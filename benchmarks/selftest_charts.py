"""Show that the pictures say what was measured: `python benchmarks/selftest_charts.py`. Needs matplotlib.

They are drawn from a small result that is made up: each is well-formed and accessible, has the names and the
figures, is the same whenever it is drawn, and in light and dark differs only in its colours. What was not
measured, or had errors, is not drawn.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import run
from harness.charts import LINES, NAMES, Measured, draw, read
from harness.drawing import COLOURS, Picture, darkened, spaced
from harness.measuring import Sample
from harness.servers import SERVERS
from harness.workloads import WORKLOADS, Workload

PERCENTS = ("p1", "p5", "p10", "p25", "p50", "p75", "p90", "p95", "p99", "p99.9", "p99.99", "max")
PICTURES = {"overview", "throughput", "cpu", "lines", "churn", "tls", "memory", "latency", "connections"}
SVG = "{http://www.w3.org/2000/svg}"


def sample(server: str, workload: Workload, number: int) -> Sample:
    """Return what a cell might give: figures that differ from server to server and from round to round."""
    base = 1.0 + sum(map(ord, server)) % 97 + number
    return Sample(
        server=server,
        workload=workload.key,
        round=number,
        operations=1,
        seconds=1.0,
        rate=1000 * base,
        cpu_us=base,
        system_share=0.5,
        load_share=0.5,
        disturbed=0.0,
        latency_us={name: base * 2**step for step, name in enumerate(PERCENTS)},
        errors=0,
        first_error=None,
        compared_with="uvloop-protocol",
        memory_per_connection_kib=base / 10,
    )


def made_up() -> dict[str, Any]:
    """Return a whole result of two rounds, as it is in a file."""
    samples = [
        sample(server.name, workload, number)
        for number in (1, 2)
        for workload in WORKLOADS
        for server in SERVERS
        if server.does(workload)
    ]
    machine = {"cpu": "A <CPU> & more", "python": "3.13.0", "libraries": {"uvloop": "0.22"}}
    return {
        "run": {"rounds": 2, "machine": machine},
        "samples": [dataclasses.asdict(sample) for sample in samples],
    }


def measured(result: dict[str, Any]) -> Measured:
    """Return the result as it is read from a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "made_up.json")
        path.write_text(json.dumps(result))
        return read(path)


def texts(svg: str) -> list[str]:
    """Return what is written in the picture."""
    return ["".join(text.itertext()) for text in ET.fromstring(svg).iter(f"{SVG}text")]


def problem_with_form(picture: Picture) -> str | None:
    """Return what is wrong with the picture as a file."""
    root = ET.fromstring(picture.svg)
    title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    if title is None or description is None or root.get("role") != "img":
        return "it has no name or no description"
    if root.get("aria-labelledby") != f"{title.get('id')} {description.get('id')}":
        return "its name and its description are not referred to"
    if title.text not in texts(picture.svg):
        return "its name is not its heading"
    if re.search(r"<metadata|<!DOCTYPE|<path id=\"DejaVu|https?://(?!www\.w3\.org/)", picture.svg):
        return "it has what nobody needs, letters as shapes, or something from elsewhere"
    return None if "DejaVu" not in picture.svg else "it asks for a font that readers do not have"


def problem_with_colours(picture: Picture) -> str | None:
    """Return what is wrong with the two variants."""
    colour = re.compile(r"#[0-9a-f]{6}\b")
    dark = darkened(picture.svg)
    if colour.sub("#", picture.svg) != colour.sub("#", dark):
        return "light and dark differ in more than colours"
    if unknown := set(colour.findall(picture.svg)) - set(COLOURS):
        return f"{', '.join(sorted(unknown))} has no dark variant"
    if set(colour.findall(dark)) & set(COLOURS):
        return "the dark one has colours of the light one"
    return "there is a background" if re.search(r"fill: (?:white|#fff)", picture.svg) else None


def problem_with_names(picture: Picture) -> str | None:
    """Return which servers are missing in the picture, or in its description."""
    written = texts(picture.svg)
    if not any("is better" in text for text in written):
        return "it does not say what is good"
    families = {"memory": "idle", "latency": "paced", "connections": "scaling"}
    families |= dict.fromkeys(("overview", "throughput", "cpu"), "echo")
    family = families.get(picture.name, picture.name)
    servers = {server.name for server in SERVERS if family in server.families}
    if picture.name in ("latency", "connections"):
        servers &= {name for name, *_ in LINES}
    missing = [NAMES[server] for server in servers if NAMES[server] not in written]
    missing += [NAMES[server] for server in servers if f"{NAMES[server]}: " not in picture.svg]
    return f"missing: {', '.join(sorted(set(missing)))}" if missing else None


def problem_with_figures(pictures: dict[str, Picture], result: dict[str, Any]) -> str | None:
    """Return what is wrong with the figures beside the bars: the medians of the rounds, the best first."""
    cells = [s for s in result["samples"] if s["workload"] == "echo-64-c64" and s["server"] == "go"]
    rate = sum(cell["rate"] for cell in cells) / 2
    shown = [text for text in texts(pictures["throughput"].svg) if re.fullmatch(r"[\d.]+k?", text)]
    if f"{rate / 1000:.1f}k" not in shown:
        return f"{rate} is not among {shown}"
    values = [float(text.removesuffix("k")) * (1000 if text.endswith("k") else 1) for text in shown]
    return None if values == sorted(values, reverse=True) else f"not the best first: {shown}"


def problem_with_gaps(result: dict[str, Any]) -> str | None:
    """Return what is wrong with the pictures of a result with errors, and without some of the work."""
    kept = [dict(s) for s in result["samples"] if s["workload"].startswith(("echo-64-c64", "scaling"))]
    for cell in kept:
        if cell["server"] == "twisted" or (cell["server"], cell["workload"]) == (
            "gevent",
            "scaling-64-c4096",
        ):
            cell["errors"] = 1
    found = {picture.name: picture for picture in draw([measured({**result, "samples": kept})])}
    if set(found) != {"overview", "throughput", "cpu", "connections"}:
        return f"drawn: {sorted(found)}"
    wrong = [name for name, picture in found.items() if NAMES["twisted"] in texts(picture.svg)]
    wrong += [] if NAMES["gevent"] in texts(found["connections"].svg) else ["gevent"]
    return f"wrong: {', '.join(wrong)}" if wrong else None


def problem_with_sources(result: dict[str, Any]) -> str | None:
    """Return what is wrong where a second result has one work of the first."""
    machine = {**result["run"]["machine"], "python": "3.99"}
    second = {
        "run": {**result["run"], "machine": machine},
        "samples": [s for s in result["samples"] if s["workload"].startswith("paced")],
    }
    drawn = draw([measured(result), measured(second)])
    of_second = {picture.name for picture in drawn if "3.99" in picture.svg}
    return None if of_second == {"latency"} and len(drawn) == len(PICTURES) else f"second: {of_second}"


def problem_with_places(places: list[float], expected: list[float]) -> str | None:
    """Return what is wrong with names that are moved apart."""
    found = [round(place, 1) for place in spaced(places, 20, 100)]
    return None if found == expected else f"{found}, expected {expected}"


def problem_without_matplotlib() -> str | None:
    """Return what is wrong with what is said where matplotlib is missing."""
    told = io.StringIO()
    with mock.patch("importlib.util.find_spec", return_value=None), contextlib.redirect_stderr(told):
        written = run.write_charts([Path("results.json")], Path("nowhere"))
    if written or Path("nowhere").exists():
        return "something was written"
    text = told.getvalue()
    return None if "pip install" in text and "--charts-only results.json" in text else f"told: {text}"


def outcomes() -> Iterator[tuple[str, str, str | None]]:
    """Try everything; give the picture, the case and what is wrong."""
    result = made_up()
    pictures = {picture.name: picture for picture in draw([measured(result)])}
    missing = PICTURES - set(pictures)
    yield "all", "are drawn", f"missing: {', '.join(sorted(missing))}" if missing else None
    for name, picture in pictures.items():
        yield name, "form", problem_with_form(picture)
        yield name, "colours", problem_with_colours(picture)
        yield name, "names", problem_with_names(picture)
    again = {picture.name: picture for picture in draw([measured(result)])}
    yield "all", "the same again", None if again == pictures else "they differ"
    yield "throughput", "figures", problem_with_figures(pictures, result)
    yield "all", "gaps and errors", problem_with_gaps(result)
    yield "all", "of two results", problem_with_sources(result)
    yield "names", "far apart", problem_with_places([50.0, 10.0], [50.0, 10.0])
    yield "names", "too close", problem_with_places([50.0, 54.0, 46.0], [50.0, 70.0, 30.0])
    yield "names", "at the edges", problem_with_places([99.0, 98.0, 1.0, 0.0], [100.0, 80.0, 20.0, 0.0])
    yield "all", "without matplotlib", problem_without_matplotlib()


def main() -> int:
    """Try all cases; exit status 1 when one did not come out as it has to."""
    failed = 0
    for area, name, wrong in outcomes():
        print(f"{'FAILED' if wrong else 'ok':7}{area:12} {name:20} {wrong or ''}".rstrip())
        failed += wrong is not None
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
