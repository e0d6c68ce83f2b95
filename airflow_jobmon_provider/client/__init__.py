"""A client of Jobmon's server that knows nothing of Airflow and can be used on its own.

Which file to open:

* ``workflow_run``: what users call, ``WorkflowRunFactory`` and ``WorkflowRun``.
* ``requester`` and ``async_requester``: the two transports, blocking and asyncio; ``renewing`` and
  ``async_renewing``: the same, which go on when a token is rotated.
* ``_http``: what both transports share: the way to the server, time-outs, look-ups, foreign errors.
* ``conversations``: exchanges of several requests (wait until resumable, watch a run), without I/O.
* ``protocol``: every route, how its reply is read, and which failures are worth a retry.
* ``lifecycle``: the statuses, and the table of who moves a run where. ``heartbeat``: how it is kept alive.
* ``redaction``: what comes from elsewhere, made fit to be shown, and without secrets.
* ``settings``: Jobmon's own settings. ``validation``, ``exceptions``: what they say.
* ``cancellation``: a wait that no cancellation gets lost in.
"""
