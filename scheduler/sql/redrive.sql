-- Give dead letters a new life: both budgets start again, attempts and history stay, and the redrive is counted.
--
-- in   ids, or NULL for every one that fits; type, queue, priority, reason: filters, NULL = any; page;
--      until: what died later is left alone, or a task that dies again at once would be redriven for ever
-- out  id, queue, priority
--
-- The ids are an array, which is made once. A subquery with a lock may be run again for each row of the table,
-- and then skips what it has just taken: the page would have no end.
UPDATE tasks AS t
SET status = 'queued', failures = 0, losses = 0, refusals = 0, suspect = false, redrives = t.redrives + 1,
    redriven_at = now(), due_at = now(), finished_at = NULL, dead_at = NULL, dead_reason = NULL
WHERE t.id = ANY (ARRAY(
    SELECT id FROM tasks
    WHERE dead_at <= coalesce(:'until'::timestamptz, now())
        AND (:'ids'::uuid[] IS NULL OR id = ANY (:'ids'::uuid[]))
        AND (:'type'::text IS NULL OR type = :'type')
        AND (:'queue'::text IS NULL OR queue = :'queue')
        AND (:'priority'::text IS NULL OR priority = :'priority')
        AND (:'reason'::text IS NULL OR dead_reason = :'reason')
    ORDER BY id
    LIMIT :'page'::integer
    FOR UPDATE SKIP LOCKED
))
RETURNING t.id::text, t.queue, t.priority
