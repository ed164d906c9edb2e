-- A page of tasks, newest first. in: before (an id or NULL), page. {where} is one or more of the fixed conditions
-- that store.py lists, so that each combination gets the plan and the index that fit it.
SELECT {task}
FROM tasks AS t
WHERE (:'before'::uuid IS NULL OR t.id < :'before'::uuid) {where}
ORDER BY t.id DESC
LIMIT :'page'::integer
