#!/bin/bash
# The part of the official image's entrypoint that the examples need. It sets up a new
# database with the scripts of /docker-entrypoint-initdb.d before the server starts.
set -eu
if [ "${1:-}" != postgres ]; then exec "$@"; fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
	mkdir -p "$PGDATA"
	initdb --username="${POSTGRES_USER:-postgres}" --auth="${POSTGRES_HOST_AUTH_METHOD:-trust}" --no-sync >/dev/null
	pg_ctl --options="$(printf '%q ' "${@:2}" -c listen_addresses=)" --wait start >&2
	if [ -n "${POSTGRES_DB:-}" ]; then createdb "$POSTGRES_DB"; fi
	for script in /docker-entrypoint-initdb.d/*; do
		case "$script" in
		*.sql) psql --no-psqlrc --set=ON_ERROR_STOP=1 --username="${POSTGRES_USER:-postgres}" --dbname="${POSTGRES_DB:-postgres}" --file="$script" ;;
		*.sh) . "$script" ;;
		esac
	done
	pg_ctl --mode=fast --wait stop >/dev/null
fi
exec "$@"
