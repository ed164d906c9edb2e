-- One task. in: id. out: its row, or none.
SELECT {task} FROM tasks AS t WHERE t.id = :'id'::uuid
