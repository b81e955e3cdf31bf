-- Prefect looks names up by trigram.
CREATE EXTENSION IF NOT EXISTS pg_trgm;
