"""Show that the servers that are compared do the work: `python benchmarks/selftest_servers.py [NAME ...]`.

Every server of the datagram suite, or those that are named, does each of its works for a moment: not one
datagram may be lost, changed or repeated, and each session must be there. Ours has to answer from the address
that it was asked on, which is what it is bound to the wildcard for.
"""

from __future__ import annotations

import argparse
import dataclasses
import socket
import sys

from harness import building, measuring, processes, servers
from harness.datagram_suite import DATAGRAM_SERVERS, DATAGRAM_WORKLOADS
from harness.measuring import Conditions
from harness.processes import ServerFailedError
from harness.servers import Server
from harness.workloads import Workload

SESSIONS = 500
ANOTHER_ADDRESS = "127.0.0.2"
# So many that a library's own queue holds them too: anyio's has a hundred.
SOCKETS = 8


def small(workload: Workload) -> Workload:
    """Return a work of the same kind that takes a moment and leaves no reason for losses."""
    if workload.mode == "sessions":
        return dataclasses.replace(workload, connections=SESSIONS)
    return dataclasses.replace(workload, connections=SOCKETS, lossy=False)


def problem_with(server: Server, workload: Workload, conditions: Conditions) -> str | None:
    """Return what is wrong with what the server did, or None."""
    try:
        sample = measuring.measure_once(server, workload, 1, conditions)
    except (ServerFailedError, OSError) as error:
        return str(error).splitlines()[-1]
    if sample.errors or sample.lost:
        return f"{sample.errors} errors, {sample.lost} lost: {sample.first_error}"
    if workload.mode == "sessions" and sample.operations != SESSIONS:
        return f"{sample.operations} of {SESSIONS} sessions were answered"
    return None if sample.operations else "nothing was answered"


def problem_with_address(server: Server, workload: Workload, conditions: Conditions) -> str | None:
    """Return what is wrong with the address of the reply to a datagram for `ANOTHER_ADDRESS`."""
    port = processes.free_port()
    command = processes.server_command(server, workload, port, conditions.python, None)
    try:
        with processes.running(command, port, conditions.cores.server):
            with socket.socket(type=socket.SOCK_DGRAM) as client:
                client.settimeout(5)
                client.sendto(b"where", (ANOTHER_ADDRESS, port))
                answer = client.recvfrom(100)
    except (ServerFailedError, OSError) as error:
        return str(error).splitlines()[-1]
    expected = (b"where", (ANOTHER_ADDRESS, port))
    return None if answer == expected else f"answered {answer}, expected {expected}"


def unusable(server: Server, python: str) -> str | None:
    """Return why the server cannot run here, or None."""
    if server.binary:
        return building.build_native_server(server.binary)
    missing = building.missing_modules(python, server.modules)
    return f"{', '.join(missing)} not installed" if missing else None


def tell(server: str, work: str, wrong: str | None, word: str = "FAILED") -> bool:
    """Print the outcome of a case; return whether it failed."""
    print(f"{word if wrong else 'ok':9}{server:24} {work:24} {wrong or ''}".rstrip(), flush=True)
    return wrong is not None


def failures_of(server: Server, conditions: Conditions) -> int:
    """Try all works of one server; return how many failed."""
    failed = 0
    able = [workload for workload in DATAGRAM_WORKLOADS if server.does(workload)]
    for workload in able:
        failed += tell(server.name, workload.key, problem_with(server, small(workload), conditions))
    if server.name.startswith("ours-"):
        for workload in {workload.server_work: workload for workload in able}.values():
            wrong = problem_with_address(server, workload, conditions)
            failed += tell(server.name, f"from 127.0.0.2, {workload.server_work}", wrong)
    return failed


def main() -> int:
    """Try the servers; exit status 1 when one did not do its work. One that cannot run here is left out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("servers", nargs="*", metavar="NAME")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the servers")
    options = parser.parse_args()
    try:
        wanted = servers.select(options.servers, DATAGRAM_SERVERS)
    except ValueError as error:
        parser.error(str(error))
    building.build_loadgen()
    cores = processes.choose_cores()
    conditions = Conditions(options.python, cores, warmup=0.05, seconds=0.1, cold=False, attempts=1)
    failed = 0
    for server in wanted:
        reason = unusable(server, options.python)
        if reason:
            tell(server.name, "", reason, "left out")
        else:
            failed += failures_of(server, conditions)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
