"""Runs that wait for an executor, many at once."""

from __future__ import annotations

from dev.jobmon_sandbox import JobmonSandbox


def linking_runs(sandbox: JobmonSandbox, count: int) -> list[int]:
    """Make so many runs that wait for an executor, each of a workflow of its own."""
    original = sandbox.make_workflow("new", tasks=1).workflow_id
    made = []
    for workflow in sandbox.copy_workflow(original, count):
        body = {"workflow_id": workflow, "user": "sandbox", "jobmon_version": "sandbox"}
        reply = sandbox.post("/api/v2/workflow_run", {**body, "next_report_increment": 3600})
        made.append(reply["workflow_run_id"])
    return made
