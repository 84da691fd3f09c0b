#!/bin/sh
# Like the entrypoint of the official image: flags are passed to the server.
case "${1:--}" in -*) set -- nats-server "$@" ;; esac
exec "$@"
