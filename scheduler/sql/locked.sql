-- Which of these rows somebody else has locked, so that whoever changes them would have to wait.
--
-- in   ids
-- out  the ids of those
WITH free AS (
    SELECT id FROM tasks WHERE id = ANY (:'ids'::uuid[]) FOR NO KEY UPDATE SKIP LOCKED
)
SELECT id::text FROM tasks WHERE id = ANY (:'ids'::uuid[]) AND id NOT IN (SELECT id FROM free)
