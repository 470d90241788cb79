#!/bin/sh
# Runs once, in an empty PostgreSQL: the archive of Argo's workflows.
set -eu
psql -v ON_ERROR_STOP=1 --quiet --username "$POSTGRES_USER" --dbname postgres <<'SQL'
\set argo_password `cat /run/secrets/argo_db_password`
CREATE ROLE argo LOGIN PASSWORD :'argo_password';
CREATE DATABASE argo OWNER argo;
REVOKE ALL ON DATABASE argo FROM PUBLIC;
SQL
