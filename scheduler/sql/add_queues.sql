-- Make queues known. in: names.
INSERT INTO queues (name) SELECT unnest(:'names'::text[]) ON CONFLICT DO NOTHING
