-- Renew leases, also lapsed ones that nobody reaped yet.
--
-- in   ids (in id order), attempts, vis_ms
-- out  the ids that are still held
--
-- The status is compared through the input for the reason that claim.sql gives.
UPDATE tasks AS t
SET lease_expires_at = now() + :'vis_ms'::bigint * interval '1 millisecond'
FROM unnest(:'ids'::uuid[], :'attempts'::integer[]) AS d (id, attempt)
WHERE t.id = d.id AND t.attempts = d.attempt AND t.status = CASE WHEN d.attempt > 0 THEN 'running' END
RETURNING t.id::text
