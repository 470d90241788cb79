#!/bin/sh
# Runs once, in an empty PostgreSQL: one role and its databases for each service that keeps something in it.
set -eu
psql -v ON_ERROR_STOP=1 --quiet --username "$POSTGRES_USER" --dbname postgres <<'SQL'
\set mlflow_password `cat /run/secrets/mlflow_db_password`
\set feast_password `cat /run/secrets/feast_db_password`
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE ROLE feast LOGIN PASSWORD :'feast_password';
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;
CREATE DATABASE feast OWNER feast;
REVOKE ALL ON DATABASE mlflow, mlflow_auth, feast FROM PUBLIC;
SQL
