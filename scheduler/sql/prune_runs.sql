-- Delete a page of history that no day has taken and that would be gone with its day. There is some only where
-- days were not made in time, or an id came from a clock that is days off. in: keep_ms, page. out: how many.
WITH gone AS (
    DELETE FROM task_runs_default AS r
    WHERE (r.task_id, r.attempt) IN (
        SELECT d.task_id, d.attempt
        FROM task_runs_default AS d
        WHERE d.finished_at < now() - :'keep_ms'::bigint * interval '1 millisecond'
            AND NOT EXISTS (SELECT FROM tasks AS t WHERE t.id = d.task_id)
        LIMIT :'page'::integer
    )
    RETURNING 1
)
SELECT count(*) FROM gone
