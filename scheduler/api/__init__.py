"""The HTTP API: accepts tasks, shows them, cancels them, and says how the queues and stores are.

access       who is answered
body         bytes → JSON, bounded and strict
spec         JSON → NewTask: what a client may say about a task
submissions  POST /v1/tasks and /v1/tasks/bulk, the hot routes
tasks        reading, listing and cancelling tasks
queues       depths
health       /healthz and /readyz
views        what answers look like
problems     what errors look like (RFC 9457)
openapi      the document that describes all of this
app          the parts put together
server       one process that serves it
"""
