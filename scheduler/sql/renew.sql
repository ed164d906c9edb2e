-- Renew leases, also lapsed ones that nobody reaped yet.
--
-- in   ids (in id order), attempts, vis_ms
-- out  the ids that are still held
UPDATE tasks AS t
SET lease_expires_at = now() + :'vis_ms'::bigint * interval '1 millisecond'
FROM unnest(:'ids'::uuid[], :'attempts'::integer[]) AS d (id, attempt)
WHERE t.id = d.id AND t.status = 'running' AND t.attempts = d.attempt
RETURNING t.id::text
