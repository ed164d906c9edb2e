-- The names of all queues.
SELECT name FROM queues ORDER BY name
