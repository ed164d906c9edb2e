-- Delete a page of tasks that ended longer ago than the retention; dead letters and tasks that a key still
-- answers with stay. Their history goes with its day.
--
-- in   after (an id), keep_ms, page
-- out  the last id that was looked at (NULL = the end was reached), how many were deleted
WITH page AS (
    SELECT id, finished_at, dead_at, tenant, idempotency_key
    FROM tasks
    WHERE id > :'after'::uuid AND id < uuid_at(now() - :'keep_ms'::bigint * interval '1 millisecond')
    ORDER BY id
    LIMIT :'page'::integer
), gone AS (
    DELETE FROM tasks AS t
    USING page AS p
    WHERE t.id = p.id
        AND p.finished_at < now() - :'keep_ms'::bigint * interval '1 millisecond'
        AND p.dead_at IS NULL
        AND NOT EXISTS (
            SELECT FROM idempotency_keys AS k
            WHERE k.tenant = p.tenant AND k.key = p.idempotency_key AND k.task_id = p.id
        )
    RETURNING 1
)
SELECT (SELECT id::text FROM page ORDER BY id DESC LIMIT 1), (SELECT count(*) FROM gone)
