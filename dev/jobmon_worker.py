"""What the sandbox asks of Jobmon's own client and reaper. Runs in Jobmon's own environment.

python jobmon_worker.py serve PORT             answers the sandbox over loopback HTTP
python jobmon_worker.py execute WORKFLOW RUN CLUSTER   executes a run that is LINKING, to its end
"""

from __future__ import annotations

import json
import sys
import threading
import traceback
import uuid
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any


def make_workflow(commands: list[str], cluster: str, queue: str) -> int:
    """Bind a workflow of independent tasks that run these shell commands, and do not run it."""
    from jobmon.client.api import Tool

    tool = Tool(name="sandbox")
    template = tool.get_task_template(
        template_name="shell", command_template="{command}", node_args=["command"], task_args=[], op_args=[]
    )
    name = f"sandbox-{uuid.uuid4().hex[:8]}"
    workflow = tool.create_workflow(
        name=name,
        workflow_args=name,
        default_cluster_name=cluster,
        default_compute_resources_set={cluster: {"queue": queue}},
    )
    workflow.add_tasks(
        template.create_task(name=f"task-{n}", command=command, max_attempts=1)
        for n, command in enumerate(commands)
    )
    workflow.bind()
    workflow._bind_tasks()
    return int(workflow.workflow_id)


def create_run(workflow_id: int) -> int:
    """Create the workflow's next run with Jobmon's own client."""
    from jobmon.client.workflow_run import WorkflowRunFactory

    return int(WorkflowRunFactory(workflow_id).create_workflow_run().workflow_run_id)


def execute(workflow_id: int, workflow_run_id: int, cluster: str) -> str:
    """Execute a run that is LINKING, as Jobmon's resume command does once it has created one."""
    from jobmon.client.swarm.workflow_run import WorkflowRun
    from jobmon.client.workflow import DistributorContext

    swarm = WorkflowRun(workflow_run_id=workflow_run_id, status="L")
    swarm.from_workflow_id(workflow_id)
    with DistributorContext(cluster, workflow_run_id, 180) as distributor:
        swarm.run(distributor.alive)
    return str(swarm.status)


class Reaper:
    """Jobmon's own reaper, one pass at a time or for ever."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._stopped.set()

    def reap(self) -> None:
        from jobmon.server.workflow_reaper.workflow_reaper import WorkflowReaper

        reaper = WorkflowReaper(poll_interval_seconds=1)
        reaper._halted_state()
        reaper._aborted_state()
        reaper._error_state()

    def start(self, poll_interval: float) -> None:
        self._stopped = stopped = threading.Event()

        def run() -> None:
            while not stopped.is_set():
                try:
                    self.reap()
                except Exception:  # the server may be down: that is what some tests are about
                    traceback.print_exc()
                stopped.wait(poll_interval)

        threading.Thread(target=run, daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()


def serve(port: int) -> None:
    reaper = Reaper()
    actions = {
        "make_workflow": make_workflow,
        "create_run": create_run,
        "reap": reaper.reap,
        "start_reaper": reaper.start,
        "stop_reaper": reaper.stop,
    }

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            arguments: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                status, reply = 200, actions[self.path.lstrip("/")](**arguments)
            except Exception:
                status, reply = 500, traceback.format_exc()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())

        def log_message(self, *args: Any) -> None:
            pass

    HTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        ended = execute(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
        print(f"workflow run {sys.argv[3]} ended {ended}")
        sys.exit(ended != "D")
