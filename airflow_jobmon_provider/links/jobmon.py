"""The link from an Airflow task to its workflow in Jobmon's GUI."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator, Context
    from airflow.sdk.types import TaskInstanceKey

__all__ = ["JobmonWorkflowLink"]


class JobmonWorkflowLink(BaseOperatorLink):
    """Button "Jobmon workflow" of a task instance; none if the connection has no ``gui_url``.

    The worker has the connection at hand and stores the address as an XCom; nobody else reads connections.
    Airflow 3's API server reads that XCom by its key and never calls this class. Airflow 2's web server calls
    ``get_link``, and so does Airflow 3's worker after each execution, to store what it returns. An address is
    stored in any case, if only an empty one: Airflow 3 logs an error for an XCom that is not there.
    """

    name = "Jobmon workflow"

    @property
    def xcom_key(self) -> str:
        """Key under which the address is stored. Airflow 2 does not know this property."""
        return "_link_JobmonWorkflowLink"

    def store(self, context: Context, url: str) -> None:
        """Store the address; to be called by the operator, on the worker, as soon as it knows the workflow.

        :param url: see :func:`workflow_url`; "": there is no link.
        """
        context["ti"].xcom_push(key=self.xcom_key, value=url)

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the address that the worker has stored; "" if there is none, or it is no http address."""
        # Importing it loads the XCom backend, which parsing a DAG file has no use for.
        from airflow.providers.common.compat.sdk import XCom

        url = XCom.get_value(ti_key=ti_key, key=self.xcom_key)
        return url if _is_http(url) else ""


def workflow_url(gui_url: str | None, workflow_id: int) -> str:
    """Return the address of a workflow in Jobmon's GUI; "" without the GUI's http or https address."""
    return f"{gui_url.rstrip('/')}/#/workflow/{workflow_id}" if gui_url and _is_http(gui_url) else ""


def _is_http(url: object) -> bool:
    # A browser follows what stands in an XCom, and a user who may write one could write "javascript:…" there.
    if not isinstance(url, str) or " " in url or not url.isprintable():
        return False
    try:
        return urlsplit(url).scheme in ("http", "https") and bool(urlsplit(url).hostname)
    except ValueError:
        return False
