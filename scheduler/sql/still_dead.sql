-- Which of some ids are dead letters. in: ids. out: those that are.
SELECT id::text FROM tasks WHERE id = ANY (:'ids'::uuid[]) AND dead_at IS NOT NULL
