#!/usr/bin/env bash
# A Prefect worker in its own workspace, a clone that is reused by later starts. Two workers never share one.
#
#   infra/worker.sh local     whole flows; registers the deployments of infra/prefect.yaml first
#   infra/worker.sh gpu       single stages, one at a time, on the visible GPU
#
# Environment:
#   PREFECT_API_URL          address of the server, such as http://host:4200/api
#   PREFECT_API_AUTH_STRING  user:password, if the server requires it
#   MED_R1_REPOSITORY        repository to clone: a folder or a git address
#   MED_R1_ROOT              folder of the clone, on a persistent disk
#   MED_R1_REVISION          commit or branch to check out; if unset, the clone's HEAD
#   MED_R1_DVC_REMOTE        DVC remote (folder or address) shared by workers; if unset, the repository's remote
#   MED_R1_HEALTHCHECK       if set, serve the worker's health on PREFECT_WORKER_WEBSERVER_PORT
set -euo pipefail

fail() {
    echo "error: $1" >&2
    exit 1
}

pool=${1:-}
[[ $pool == local || $pool == gpu ]] || fail "unknown work pool '$pool': run infra/worker.sh local, or infra/worker.sh gpu"
[[ -n ${PREFECT_API_URL:-} ]] || fail "PREFECT_API_URL is not set: set it to the server's address, such as http://host:4200/api"
[[ -n ${MED_R1_REPOSITORY:-} ]] || fail "MED_R1_REPOSITORY is not set: set it to the folder or address to clone"
[[ -n ${MED_R1_ROOT:-} ]] || fail "MED_R1_ROOT is not set: set it to the folder of this worker's clone"

mkdir -p "$(dirname "$MED_R1_ROOT")"
exec 9>"$MED_R1_ROOT.lock"
flock --nonblock 9 || fail "another worker uses $MED_R1_ROOT: set another MED_R1_ROOT for each worker"

if [[ ! -d $MED_R1_ROOT/.git ]]; then
    # clone under another name: an interrupted clone must not pass for a complete one
    rm -rf "$MED_R1_ROOT.part"
    git clone --quiet "$MED_R1_REPOSITORY" "$MED_R1_ROOT.part"
    mv --no-target-directory "$MED_R1_ROOT.part" "$MED_R1_ROOT"
fi
cd "$MED_R1_ROOT"

if [[ -n ${MED_R1_REVISION:-} ]]; then
    git fetch --quiet --tags origin
    commit=$(git rev-parse --verify --quiet "origin/$MED_R1_REVISION^{commit}" || git rev-parse --verify --quiet "$MED_R1_REVISION^{commit}") ||
        fail "MED_R1_REVISION: $MED_R1_REPOSITORY has no commit or branch $MED_R1_REVISION"
    git checkout --quiet --detach "$commit" ||
        fail "$MED_R1_ROOT has changes that $MED_R1_REVISION would overwrite: commit them there, or run 'git checkout .' to discard them"
fi

if [[ -n ${MED_R1_DVC_REMOTE:-} ]]; then
    dvc remote add --quiet --local --force --default shared "$MED_R1_DVC_REMOTE"
fi

export PYTHONPATH=$MED_R1_ROOT
if [[ $pool == local ]]; then
    for each in local gpu; do
        prefect --no-prompt work-pool inspect "$each" >/dev/null 2>&1 || prefect --no-prompt work-pool create "$each" --type process
    done
    # with MED_R1_ROOT unset, deployments resolve it in the worker that runs them: each has its own
    env --unset=MED_R1_ROOT prefect --no-prompt deploy --all --prefect-file infra/prefect.yaml
fi

# A shell starts background processes with SIGINT ignored, which would keep the worker and its stages from stopping gracefully.
python -c 'import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])' \
    prefect worker start --pool "$pool" --type process --limit 1 --name "$pool-$(hostname)-$$" ${MED_R1_HEALTHCHECK:+--with-healthcheck} &
worker=$!
trap 'kill -TERM "$worker" 2>/dev/null || true' TERM INT
# a signal interrupts `wait` before the worker has ended
code=0
while true; do
    wait "$worker" && code=0 || code=$?
    kill -0 "$worker" 2>/dev/null || break
done

# The worker kills its flow run at once, and flows/dvc_api/guard.py then interrupts the stage, within 25 s. Wait for it: the end of
# a container or a job would kill both.
shopt -s nullglob
for ((attempt = 0; attempt < 60; attempt++)); do
    running=0
    for record in .scratch/flows/running/*.pid; do
        if kill -0 "$(<"$record")" 2>/dev/null; then running=1; fi
    done
    ((running)) || break
    sleep 0.5
done
exit "$code"
