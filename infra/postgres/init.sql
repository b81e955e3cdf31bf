-- Prefect searches names by trigram.
CREATE EXTENSION IF NOT EXISTS pg_trgm;
