"""Flow runs that crash are begun again by an automation (infra/prefect), but not without end."""

from __future__ import annotations

from prefect.runtime import flow_run

from pipeline.errors import UsageError

RESTARTS = 2


def refuse_endless_restarts(restarts: int = RESTARTS) -> None:
    """Stop a flow run that crashes each time.

    Raises:
        UsageError: this flow run was begun again more often than `restarts`.
    """
    begun = int(flow_run.run_count or 1)
    if begun > 1 + restarts:
        raise UsageError(
            f"begun {begun - 1} times and crashed each time: see the logs of this flow run, mend "
            "the cause, and run the deployment again; it resumes"
        )
