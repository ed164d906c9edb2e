-- Take dead letters off the dead-letter queue for good. Their tasks stay dead, as history, until retention ends.
--
-- in, out  as redrive.sql
UPDATE tasks AS t
SET dead_at = NULL
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
