"""`make serve`: Prefect server, worker and deployments on this machine until Ctrl-C."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from pathlib import Path

from infra.prefect_local import ARRIVALS_TOKEN, DEPLOYMENT, ROOT, LocalPrefect, Watch
from infra.processes import StartError, interrupt_on_terminate
from pipeline.storage import redact

HOME = ROOT / ".prefect"
DEFAULT_PORT = "4200"
DATABASE_VARIABLE = "SR_ARCHIVE_PREFECT_DATABASE"  # no option: the address may hold a password


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m infra.serve", description=__doc__)
    parser.add_argument(
        "--port",
        type=int,
        default=os.environ.get("SR_ARCHIVE_PREFECT_PORT", DEFAULT_PORT),
        help="of the server on 127.0.0.1 (SR_ARCHIVE_PREFECT_PORT, 4200)",
    )
    parser.add_argument(
        "--home", type=Path, default=HOME, help="database, logs and settings (.prefect)"
    )
    parser.add_argument("--source", help="archive whose new scenes are processed as they arrive")
    parser.add_argument("--output", help="where their results go")
    parser.add_argument("--arrivals-port", type=int, default=4280, help="of its notifications")
    given = parser.parse_args()
    if (given.source is None) != (given.output is None):
        parser.error("--source and --output belong together")
    return given


def _watch(given: argparse.Namespace) -> Watch | None:
    if given.source is None:
        return None
    token = os.environ.get(ARRIVALS_TOKEN) or secrets.token_urlsafe(24)
    return Watch(given.source, given.output, token, given.arrivals_port)


def _introduce(prefect: LocalPrefect, watch: Watch | None) -> None:
    program = Path(sys.executable).with_name("prefect")
    shown = program.relative_to(ROOT) if program.is_relative_to(ROOT) else program
    print(f"\nPrefect: {prefect.url}")
    print("In another terminal:\n")
    print(f"  PREFECT_API_URL={prefect.api} {shown} deployment run {DEPLOYMENT} \\")
    print("    -p source=FOLDER_OR_URL -p output=FOLDER_OR_URL --watch\n")
    if watch is not None:
        print(f"New scenes of {redact(watch.source)} are processed every hour, and soon after a")
        print(f"notification of the bucket to {watch.url}; it carries the bearer token")
        print(f"of {ARRIVALS_TOKEN}, or this one where that is not set: {_shown(watch)}\n")
    print("S3 credentials are taken from the environment of this command.")
    print("Ctrl-C stops server, worker and flow runs.\n", flush=True)


def _shown(watch: Watch) -> str:
    """A token that was made here must be told; one of the environment is known."""
    return "(set)" if os.environ.get(ARRIVALS_TOKEN) else watch.token


def serve(home: Path, port: int, watch: Watch | None = None) -> int:
    """Bring everything up and stay; the returned status is the program's."""
    print("starting the Prefect server, the worker and the deployment ...", flush=True)
    database = os.environ.get(DATABASE_VARIABLE)
    with LocalPrefect(home, port, verbose=True, watch=watch, database=database) as prefect:
        _introduce(prefect, watch)
        while (part := prefect.ended()) is None:
            time.sleep(1.0)
        print(f"serve: the {part} ended by itself; logs are in {home}", file=sys.stderr)
    return 1


def main() -> int:
    arguments = _arguments()
    interrupt_on_terminate()
    try:
        return serve(arguments.home, arguments.port, _watch(arguments))
    except StartError as error:
        print(f"serve: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nserve: stopped")
        return 0


if __name__ == "__main__":
    sys.exit(main())
