-- The tasks behind ids or keys that enqueue.sql found taken.
--
-- in   ids, tenants, keys: parallel arrays of the tasks as they were sent
-- out  the id that was sent, the key's fingerprint (NULL without a key), milliseconds until due (0 = now), and the
--      task's row
SELECT
    d.id::text, k.fingerprint, greatest(ceil(extract(epoch FROM t.due_at - now()) * 1000), 0)::bigint,
    {task}
FROM unnest(:'ids'::uuid[], :'tenants'::text[], :'keys'::text[]) AS d (id, tenant, key)
LEFT JOIN idempotency_keys AS k ON k.tenant = d.tenant AND k.key = d.key
JOIN tasks AS t ON t.id = coalesce(k.task_id, d.id)
