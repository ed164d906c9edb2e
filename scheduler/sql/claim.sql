-- Turn leased ids into running attempts: each accepted row gets its next attempt number, the fence.
--
-- in   ids (in id order), token and worker of the lease, vis_ms, most (bytes of a payload; NULL = any)
-- out  one row a claim, with NULL for a payload that is larger; an id that is missing was refused: see look.sql
--
-- The guard names the input, so that it belongs to the join. Where statistics were taken while no row was queued,
-- Postgres would take a guard on the row alone for one that leaves almost nothing, and begin with all of `tasks`.
UPDATE tasks AS t
SET status = 'running',
    attempts = t.attempts + 1,
    worker = :'worker',
    lease_token = :'token',
    claimed_at = now(),
    lease_expires_at = now() + :'vis_ms'::bigint * interval '1 millisecond'
FROM unnest(:'ids'::uuid[]) AS d (id)
WHERE t.id = d.id
    AND CASE WHEN d.id IS NOT NULL THEN t.status IN ('queued', 'retrying') AND t.due_at <= now() END
RETURNING {lease}
