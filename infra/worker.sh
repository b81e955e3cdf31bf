#!/usr/bin/env bash
# A Prefect worker in a workspace of its own, which is cloned once and kept between starts. Two workers never share one.
#
#   infra/worker.sh local     whole flows; registers the deployments of infra/prefect.yaml before it begins
#   infra/worker.sh gpu       single stages, one at a time, on the GPU this process sees
#
# From the environment:
#   PREFECT_API_URL          the server, as http://host:4200/api
#   PREFECT_API_AUTH_STRING  user:password, if the server asks for it
#   MED_R1_REPOSITORY        what to clone: a folder or an address that git knows
#   MED_R1_ROOT              where the clone is or will be, on a disk that outlives the worker
#   MED_R1_REVISION          commit or branch to work at; if unset, what the clone has
#   MED_R1_DVC_REMOTE        folder or address where workers exchange results by DVC; if unset, the repository's own remote
#   MED_R1_HEALTHCHECK       if set, answer on PREFECT_WORKER_WEBSERVER_PORT whether the worker polls
set -euo pipefail

fail() {
    echo "error: $1" >&2
    exit 1
}

pool=${1:-}
[[ $pool == local || $pool == gpu ]] || fail "which work pool? infra/worker.sh local, or infra/worker.sh gpu"
[[ -n ${PREFECT_API_URL:-} ]] || fail "PREFECT_API_URL is not set: the server's address, as http://host:4200/api"
[[ -n ${MED_R1_REPOSITORY:-} ]] || fail "MED_R1_REPOSITORY is not set: the folder or address to clone"
[[ -n ${MED_R1_ROOT:-} ]] || fail "MED_R1_ROOT is not set: the folder of this worker's clone"

mkdir -p "$(dirname "$MED_R1_ROOT")"
exec 9>"$MED_R1_ROOT.lock"
flock --nonblock 9 || fail "another worker has $MED_R1_ROOT: give each a folder of its own"

if [[ ! -d $MED_R1_ROOT/.git ]]; then
    # under another name first, or a clone that was interrupted would be taken for a workspace
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
        fail "$MED_R1_ROOT has changes that $MED_R1_REVISION would overwrite: commit them there, or 'git checkout .' if they are not wanted"
fi

if [[ -n ${MED_R1_DVC_REMOTE:-} ]]; then
    dvc remote add --quiet --local --force --default shared "$MED_R1_DVC_REMOTE"
fi

export PYTHONPATH=$MED_R1_ROOT
if [[ $pool == local ]]; then
    for each in local gpu; do
        prefect --no-prompt work-pool inspect "$each" >/dev/null 2>&1 || prefect --no-prompt work-pool create "$each" --type process
    done
    # without MED_R1_ROOT, the deployments ask it of the worker that runs them, and each has its own
    env --unset=MED_R1_ROOT prefect --no-prompt deploy --all --prefect-file infra/prefect.yaml
fi

# A shell lets what it starts with & ignore interrupts, and then neither the worker nor a stage could be ended in good order.
python -c 'import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])' \
    prefect worker start --pool "$pool" --type process --limit 1 --name "$pool-$(hostname)-$$" ${MED_R1_HEALTHCHECK:+--with-healthcheck} &
worker=$!
trap 'kill -TERM "$worker" 2>/dev/null || true' TERM INT
# a signal ends `wait` at once; the worker takes its time
code=0
while true; do
    wait "$worker" && code=0 || code=$?
    kill -0 "$worker" 2>/dev/null || break
done

# The worker ends its flow run at once, and flows/dvc_api/guard.py then interrupts the stage, for up to 25 s. A container or a job
# that ended before would kill both.
shopt -s nullglob
for ((half = 0; half < 60; half++)); do
    left=0
    for record in .scratch/flows/running/*.pid; do
        if kill -0 "$(<"$record")" 2>/dev/null; then left=1; fi
    done
    ((left)) || break
    sleep 0.5
done
exit "$code"
