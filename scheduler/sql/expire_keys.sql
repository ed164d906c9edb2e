-- Forget a page of idempotency keys whose time is over and whose tasks have ended. in: page. out: how many.
WITH gone AS (
    DELETE FROM idempotency_keys AS k
    WHERE (k.tenant, k.key) IN (
        SELECT e.tenant, e.key
        FROM idempotency_keys AS e
        LEFT JOIN tasks AS t ON t.id = e.task_id
        WHERE e.expires_at <= now() AND (t.id IS NULL OR t.finished_at IS NOT NULL)
        ORDER BY e.expires_at
        LIMIT :'page'::integer
    )
    RETURNING 1
)
SELECT count(*) FROM gone
