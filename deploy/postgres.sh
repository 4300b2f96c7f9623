#!/bin/bash
# Makes the cluster and MLflow's database the first time; then PostgreSQL itself takes this process's place.
# The password of /etc/lacuna/postgres is asked of whoever comes over the network; of those in the container, none.
set -euo pipefail
data=/srv/postgres/15
if [ ! -s "$data/PG_VERSION" ]; then
    rm -rf "$data" "$data.new"
    initdb --pgdata="$data.new" --username=mlflow --pwfile=/etc/lacuna/postgres \
        --auth-local=trust --auth-host=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8 --data-checksums
    printf 'host all all all scram-sha-256\n' >>"$data.new/pg_hba.conf"
    pg_ctl --pgdata="$data.new" --wait --options="-c listen_addresses='' -c unix_socket_directories=/tmp" start
    createdb --host=/tmp --username=mlflow mlflow
    pg_ctl --pgdata="$data.new" --wait --mode=fast stop
    mv "$data.new" "$data"    # whole or not at all
fi
exec postgres -D "$data" -c listen_addresses='*' -c unix_socket_directories=/tmp
