-- Commit new tasks and their idempotency keys, all of them or none.
--
-- in   parallel arrays, one element a task, in id order; delay_ms or run_at NULL = due now. Payloads and backoffs
--      are JSON texts, one a line, for half the price of an array; an empty line = NULL
-- out  the rows that are new: id, created_at, due_at, milliseconds until due (0 = now). A task that is missing
--      from the answer was known already, by its id (this call was sent before) or by its key: see known.sql.
WITH input AS (
    SELECT * FROM unnest(
        :'ids'::uuid[], :'tenants'::text[], :'queues'::text[], :'types'::text[], :'priorities'::text[],
        string_to_array(:'payloads', E'\n'), :'max_retries'::integer[], :'timeouts'::integer[],
        string_to_array(:'backoffs', E'\n', ''), :'delays'::bigint[], :'run_ats'::timestamptz[],
        :'keys'::text[], :'fingerprints'::text[], :'traces'::text[]
    ) AS t (
        id, tenant, queue, type, priority, payload, max_retries, timeout_ms, backoff,
        delay_ms, run_at, key, fingerprint, trace_context
    )
), new_keys AS (
    INSERT INTO idempotency_keys (tenant, key, fingerprint, task_id, expires_at)
    SELECT tenant, key, fingerprint, id, now() + :'ttl_ms'::bigint * interval '1 millisecond'
    FROM input
    WHERE key IS NOT NULL
    ORDER BY tenant, key
    ON CONFLICT (tenant, key) DO NOTHING
    RETURNING task_id
)
INSERT INTO tasks (
    id, tenant, queue, type, priority, payload, max_retries, timeout_ms, backoff, due_at,
    idempotency_key, trace_context
)
SELECT
    id, tenant, queue, type, priority, payload::jsonb, max_retries, timeout_ms, backoff::jsonb,
    coalesce(run_at, now() + coalesce(delay_ms, 0) * interval '1 millisecond'),
    key, trace_context
FROM input
WHERE key IS NULL OR id IN (SELECT task_id FROM new_keys)
ON CONFLICT (id) DO NOTHING
RETURNING
    id::text, created_at, due_at,
    greatest(ceil(extract(epoch FROM due_at - now()) * 1000), 0)::bigint
