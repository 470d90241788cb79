#!/bin/sh
# Each database as one moment of it; and beside MLflow's the tables in which `shopfloor backup` looks for versions without files,
# as its own image has no pg_restore.
set -eu
dump() {
  PGPASSWORD=$(cat "/run/secrets/$2") pg_dump --host=postgres --username="$1" --format=custom --file="/dumps/$3.dump" "$3"
}
dump mlflow mlflow_db_password mlflow
dump mlflow mlflow_db_password mlflow_auth
dump argo argo_db_password argo
for table in model_versions registered_model_aliases runs; do
  pg_restore --data-only --table="$table" --file="/dumps/mlflow.$table.sql" /dumps/mlflow.dump
done
