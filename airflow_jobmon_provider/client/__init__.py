"""A client of Jobmon's server that knows nothing of Airflow and can be used on its own.

Which file to open:

* ``workflow_run``: what users call, ``WorkflowRunFactory`` and ``WorkflowRun``.
* ``requester`` and ``async_requester``: the two transports, blocking and asyncio; ``deadline`` and
  ``plain_http``: a time-out for a whole reply, and heartbeats at less cost.
* ``conversations``: exchanges of several requests (wait until resumable, watch a run), without I/O.
* ``ownership`` and ``follow``: more of them: create exactly one run and leave none behind; say how it goes.
* ``protocol``: every route, how its reply is read, and which failures are worth a retry.
* ``decisions``: when to ask next, and what a status means.
* ``text``: what comes from elsewhere, made fit to be shown, and without secrets.
* ``settings``: Jobmon's own settings; ``statuses``, ``validation``, ``exceptions``: what they say.
"""
