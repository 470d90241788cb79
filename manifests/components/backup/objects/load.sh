#!/bin/sh
# Each database becomes what its dump is, whole or not at all.
set -eu
load() {
  PGPASSWORD=$(cat "/run/secrets/$2")
  export PGPASSWORD PGOPTIONS="-c client_min_messages=warning"
  # As PostgreSQL makes it in a new database: a table that the dump lacks goes, too.
  psql -v ON_ERROR_STOP=1 --quiet --host=postgres --username="$1" --dbname="$3" \
    -c 'DROP SCHEMA public CASCADE' \
    -c 'CREATE SCHEMA public AUTHORIZATION pg_database_owner' \
    -c 'GRANT USAGE ON SCHEMA public TO PUBLIC'
  pg_restore --host=postgres --username="$1" --dbname="$3" --no-owner --single-transaction --exit-on-error "/dumps/$3.dump"
  echo "$3 is back."
}
load argo argo_db_password argo
load mlflow mlflow_db_password mlflow_auth
load mlflow mlflow_db_password mlflow
