#!/bin/bash
# What the examples need of the official image's entrypoint: a new database is
# set up, with the scripts of /docker-entrypoint-initdb.d, before the server runs.
set -eu
if [ "${1:-}" != postgres ]; then exec "$@"; fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
	mkdir -p "$PGDATA"
	initdb --username="${POSTGRES_USER:-postgres}" --auth="${POSTGRES_HOST_AUTH_METHOD:-trust}" --no-sync >/dev/null
	pg_ctl --options="-c listen_addresses=''" --wait start >/dev/null
	if [ -n "${POSTGRES_DB:-}" ]; then createdb "$POSTGRES_DB"; fi
	for script in /docker-entrypoint-initdb.d/*.sql; do
		if [ -e "$script" ]; then psql --no-psqlrc --set=ON_ERROR_STOP=1 --dbname="${POSTGRES_DB:-postgres}" --file="$script"; fi
	done
	pg_ctl --mode=fast --wait stop >/dev/null
fi
exec "$@"
