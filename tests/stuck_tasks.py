"""A workflow whose run was told to stop and cannot."""

from __future__ import annotations

from dev.jobmon_sandbox import JobmonSandbox


def stop_with_stuck_tasks(sandbox: JobmonSandbox) -> tuple[int, int]:
    """Make a workflow whose run was told to stop, and whose one task instance never answers."""
    workflow = sandbox.make_workflow_in("C")
    run = workflow.workflow_run_id or 0
    task = sandbox.query("SELECT id FROM task WHERE workflow_id = ?", workflow.workflow_id)[0][0]
    columns = "workflow_run_id, task_id, status, array_id, task_resources_id, array_batch_num, array_step_id"
    sandbox.change(f"INSERT INTO task_instance ({columns}) VALUES (?, ?, 'K', 1, 1, 0, 0)", run, task)
    return workflow.workflow_id, run
