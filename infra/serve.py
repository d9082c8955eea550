"""`make serve`: Prefect server, worker and deployment on this machine until Ctrl-C."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from infra.prefect_local import DEPLOYMENT, ROOT, LocalPrefect
from infra.processes import StartError, interrupt_on_terminate

HOME = ROOT / ".prefect"
DEFAULT_PORT = "4200"


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
    return parser.parse_args()


def _introduce(prefect: LocalPrefect) -> None:
    program = Path(sys.executable).with_name("prefect")
    shown = program.relative_to(ROOT) if program.is_relative_to(ROOT) else program
    print(f"\nPrefect: {prefect.url}")
    print("In another terminal:\n")
    print(f"  PREFECT_API_URL={prefect.api} {shown} deployment run {DEPLOYMENT} \\")
    print("    -p source=FOLDER_OR_URL -p output=FOLDER_OR_URL --watch\n")
    print("S3 credentials are taken from the environment of this command.")
    print("Ctrl-C stops server, worker and flow runs.\n", flush=True)


def serve(home: Path, port: int) -> int:
    """Bring everything up and stay; the returned status is the program's."""
    print("starting the Prefect server, the worker and the deployment ...", flush=True)
    with LocalPrefect(home, port, verbose=True) as prefect:
        _introduce(prefect)
        while (part := prefect.ended()) is None:
            time.sleep(1.0)
        print(f"serve: the {part} ended by itself; logs are in {home}", file=sys.stderr)
    return 1


def main() -> int:
    arguments = _arguments()
    interrupt_on_terminate()
    try:
        return serve(arguments.home, arguments.port)
    except StartError as error:
        print(f"serve: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nserve: stopped")
        return 0


if __name__ == "__main__":
    sys.exit(main())
