#!/usr/bin/env bash
# Installs Debian's Slurm for `make test-slurm` where it is missing. Nothing of it is started: the tests start their own.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
packages=(slurmctld slurmd slurm-client munge)

missing=()
for program in slurmctld slurmd sbatch munged; do
    command -v "$program" > /dev/null || missing+=("$program")
done
if [[ ${#missing[@]} == 0 ]]; then
    exit 0
fi
if [[ $(id -u) != 0 ]] || ! command -v apt-get > /dev/null; then
    echo "test-slurm: missing: ${missing[*]}. On Debian, root installs them: apt-get install ${packages[*]}" >&2
    exit 1
fi
apt-get update --quiet
DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends "${packages[@]}"
