"""Measure our servers beside their peers.

    python benchmarks/run.py            everything: half an hour
    python benchmarks/run.py --quick    does everything work? no figures to quote
    python benchmarks/run.py --suite compat   compat beside the standard library's socketserver
    python benchmarks/run.py --suite datagrams   our datagram server beside its peers
    python benchmarks/run.py --work echo,churn --servers ours-uvloop,uvloop-protocol --rounds 5 --seconds 2
    python benchmarks/run.py --charts-only   the pictures of results/full.json once more

README.md beside this file tells the method and what the columns mean.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness import building, machine, measuring, processes, report, servers, workloads
from harness.measuring import Conditions
from harness.processes import Certificate, ServerFailedError
from harness.report import Run
from harness.results import Failure, Results
from harness.servers import Server
from harness.suites import SUITES
from harness.workloads import Workload

RESULTS = building.HERE / "results"
PICTURES = building.HERE.parent / "docs" / "pictures"


def command_line() -> argparse.Namespace:
    """Parse the options; `suite`, `work` and `servers` become what they name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=SUITES, default="peers", help="which work, servers and targets")
    parser.add_argument(
        "--work", default="", help="families or keys, by commas: echo, lines, churn, tls-64-c64, ..."
    )
    parser.add_argument("--servers", default="", help="names, by commas: ours-uvloop, uvloop-protocol, ...")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="measured in each cell")
    parser.add_argument("--warmup", type=float, default=0.3, help="seconds before that")
    parser.add_argument("--quick", action="store_true", help="one round, 0.3 s a cell")
    parser.add_argument("--cold", action="store_true", help="no connection before the measured ones")
    parser.add_argument(
        "--attempts", type=int, default=1, help="for a cell that other work on the cores disturbed"
    )
    parser.add_argument("--python", default=sys.executable, help="interpreter of the servers")
    parser.add_argument(
        "--name", help="of the result files (default: full or the suite's; quick; last for a part)"
    )
    parser.add_argument(
        "--charts",
        type=Path,
        metavar="DIR",
        help="where the pictures go (default: docs/pictures for a whole run, else beside the results)",
    )
    parser.add_argument("--no-charts", action="store_true", help="no pictures")
    parser.add_argument(
        "--charts-only",
        nargs="*",
        type=Path,
        metavar="JSON",
        help="draw these results, measure nothing; of several that have a work, the last (results/full.json)",
    )
    parser.add_argument("--list", action="store_true", help="show what --work and --servers can name")
    options = parser.parse_args()
    try:
        options.suite = SUITES[options.suite]
        options.work = workloads.select(names(options.work), options.suite.workloads)
        options.servers = servers.select(names(options.servers), options.suite.servers)
    except ValueError as error:
        parser.error(str(error))
    if options.quick:
        options.rounds, options.seconds, options.warmup = 1, 0.3, 0.1
    return options


def names(text: str) -> list[str]:
    """Split a list at its commas."""
    return [name for name in text.split(",") if name]


def result_name(options: argparse.Namespace) -> str:
    """Return the stem of the result files: only a whole run replaces the whole table."""
    if options.name:
        return str(options.name)
    suite = options.suite
    whole = len(options.work) == len(suite.workloads) and len(options.servers) == len(suite.servers)
    return ("quick" if options.quick else suite.result) if whole else "last"


def chart_folder(options: argparse.Namespace) -> Path:
    """Return where the pictures of a run go: those of a part do not replace the documentation's."""
    if options.charts:
        return Path(options.charts)
    name = result_name(options)
    return PICTURES if name == SUITES["peers"].result else RESULTS / f"{name}.charts"


def why_no_charts() -> str | None:
    """Return why no pictures can be drawn, or None."""
    found = importlib.util.find_spec("matplotlib")
    return None if found else "matplotlib is not installed: pip install 'matplotlib>=3.9'"


def write_charts(sources: Sequence[Path], folder: Path) -> bool:
    """Draw what the results have figures for; return whether that was possible, and tell if it was not."""
    if reason := why_no_charts():
        again = "python benchmarks/run.py --charts-only " + " ".join(map(str, sources))
        print(f"no pictures, {reason}\nthe results are kept; then: {again}", file=sys.stderr)
        return False
    from harness import charts

    pictures = charts.draw([charts.read(source) for source in sources])
    for picture in pictures:
        picture.write(folder)
    names = ", ".join(picture.name for picture in pictures) or "there is none of this work"
    print(f"pictures: {names}; in {folder}", file=sys.stderr)
    return True


def usable(python: str, wanted: Sequence[Server]) -> tuple[list[Server], list[str]]:
    """Return the servers that can run here, and why the others cannot."""
    missing = set(building.missing_modules(python, tuple({name for s in wanted for name in s.modules})))
    kept, left_out = [], []
    for server in wanted:
        lacks = sorted(missing & set(server.modules))
        reason = f"{', '.join(lacks)} not installed" if lacks else None
        if server.binary:
            reason = building.build_native_server(server.binary)
        if reason:
            left_out.append(f"{server.name}: {reason}")
        else:
            kept.append(server)
    return kept, left_out


@contextlib.contextmanager
def certificate() -> Iterator[Certificate]:
    """Make a self-signed certificate for the length of the block."""
    import trustme

    issued = trustme.CA().issue_cert("127.0.0.1")
    with tempfile.TemporaryDirectory() as folder:
        made = Certificate(Path(folder, "certificate.pem"), Path(folder, "key.pem"))
        issued.private_key_pem.write_to_path(made.key)
        for blob in issued.cert_chain_pems:
            blob.write_to_path(made.certificate, append=True)
        yield made


def cells(
    work: Sequence[Workload], wanted: Sequence[Server], rounds: int
) -> Iterator[tuple[int, Workload, Server]]:
    """Give all cells, round by round.

    Every other round goes backwards, so that no server always has the same place.
    """
    for number in range(1, rounds + 1):
        for workload in work:
            able = [server for server in wanted if server.does(workload)]
            for server in able if number % 2 else reversed(able):
                yield number, workload, server


def run(options: argparse.Namespace, work: Sequence[Workload], able: Sequence[Server]) -> Results:
    """Measure all cells, telling about each on standard error."""
    results = Results()
    with contextlib.ExitStack() as stack:
        tls = stack.enter_context(certificate()) if any(workload.tls for workload in work) else None
        conditions = Conditions(
            python=options.python,
            cores=processes.choose_cores(),
            warmup=options.warmup,
            seconds=options.seconds,
            cold=options.cold,
            attempts=options.attempts,
            tls=tls,
        )
        for number, workload, server in cells(work, able, options.rounds):
            try:
                sample = measuring.measure(server, workload, number, conditions)
            except (ServerFailedError, OSError) as error:
                reason = str(error).splitlines()[-1]  # of a traceback, the error
                results.failures.append(Failure(server.name, workload.key, number, reason))
                line = f"{workload.key:20} {server.name:20} FAILED: {error}"
            else:
                results.samples.append(sample)
                line = report.progress(sample)
            print(f"{number}  {line}", file=sys.stderr, flush=True)
    return results


def possible_work(wanted: Sequence[Workload], knows_tls: bool) -> tuple[list[Workload], list[str]]:
    """Return the workloads that this machine allows, and why not the others."""
    descriptors = processes.raise_descriptor_limit()
    kept, left_out = [], []
    for workload in wanted:
        if workload.tls and not knows_tls:
            left_out.append(f"{workload.key}: the load generator was built without OpenSSL's headers")
        elif workload.descriptors + 100 > descriptors:
            left_out.append(f"{workload.key}: only {descriptors} descriptors are allowed here")
        else:
            kept.append(workload)
    return kept, left_out


def measure(options: argparse.Namespace) -> int:
    """Run what the options say and write the results; return the exit status."""
    draws = not options.no_charts and options.suite is SUITES["peers"]
    if draws and (reason := why_no_charts()):
        print(f"there will be no pictures, {reason}", file=sys.stderr)
    work, impossible = possible_work(options.work, building.build_loadgen())
    able, unusable = usable(options.python, options.servers)
    left_out = [*impossible, *unusable]
    for text in left_out:
        print(f"left out: {text}", file=sys.stderr)
    cores = processes.choose_cores()
    if cores.server is None:
        print("only one core: server and load share it, figures mean little", file=sys.stderr)
    results = run(options, work, able)
    verdicts = results.verdicts(options.suite.targets)
    described = Run(
        options.suite.name,
        options.suite.title,
        machine.identify(options.python),
        options.rounds,
        options.seconds,
        options.warmup,
        options.attempts,
        options.cold,
        cores.server is not None,
        tuple(left_out),
    )
    text = report.markdown(described, results, work, verdicts)
    print(text)
    data = report.as_json(described, results, verdicts)
    written = report.write(RESULTS, result_name(options), text, data)
    for path in written:
        print(f"written: {path.relative_to(building.HERE.parent)}", file=sys.stderr)
    if draws:
        write_charts(written[1:], chart_folder(options))
    return 1 if results.failures or any(sample.errors for sample in results.samples) else 0


def main() -> int:
    """Run from the command line; exit status 1 when a cell failed or had errors."""
    options = command_line()
    if options.list:
        print("work:   ", *(workload.key for workload in options.suite.workloads))
        print("servers:", *(server.name for server in options.suite.servers))
        return 0
    if options.charts_only is not None:
        sources = options.charts_only or [RESULTS / "full.json"]
        return 0 if write_charts(sources, options.charts or PICTURES) else 1
    return measure(options)


if __name__ == "__main__":
    raise SystemExit(main())
