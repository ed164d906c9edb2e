-- A key names one task for as long as the key is remembered. The key's row and the task's row are written by
-- one statement, so neither exists without the other.
BEGIN;

ALTER TABLE tasks ADD COLUMN idempotency_key text;

CREATE TABLE idempotency_keys (
    tenant      text NOT NULL DEFAULT 'default',
    key         text NOT NULL,
    fingerprint text NOT NULL,                    -- SHA-256 of the request in canonical form
    task_id     uuid NOT NULL,
    expires_at  timestamptz NOT NULL,             -- not before its task has ended: see sql/expire_keys.sql
    PRIMARY KEY (tenant, key)
);

CREATE INDEX idempotency_keys_expiry ON idempotency_keys (expires_at);

INSERT INTO schema_migrations (version, name) VALUES (2, 'idempotency') ON CONFLICT DO NOTHING;

COMMIT;
