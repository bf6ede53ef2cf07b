#!/usr/bin/env bash
# A machine that has nothing but Debian 13's Python, venv, make and CA certificates, in a folder.
#
#   machine.sh make DIR              make it, with an ordinary user "ann" and this checkout in her home. Takes a minute.
#   machine.sh bare DIR SUITE        make one of that Debian, without ann and the checkout.
#   machine.sh run DIR COMMAND ...   run a command there as ann, in the checkout. It shares the network of this machine,
#                                    nothing else: what it started ends with it, and its mounts are gone.
#
# Needs root, debootstrap and unshare. How this machine reaches pip's index is copied: certificates, pip.conf, PIP_*.
set -euo pipefail

checkout=$(cd "$(dirname "$0")/../.." && pwd)
user=1000
home=/home/ann

make_bare() {
    local dir=$1 suite=$2 file
    debootstrap --variant=minbase --include=python3,python3-venv,make,ca-certificates "$suite" "$dir" > "$dir.log"
    rm -rf "$dir"/var/lib/apt/lists/* "$dir"/var/cache/apt/archives/*.deb
    for file in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
        if [ -e "$file" ]; then cp -L "$file" "$dir$file"; fi
    done
}

make_machine() {
    local dir=$1
    make_bare "$dir" trixie
    chroot "$dir" useradd --uid $user --create-home ann
    if [ -e ~/.config/pip/pip.conf ]; then install -D ~/.config/pip/pip.conf "$dir$home/.config/pip/pip.conf"; fi
    mkdir "$dir$home/runtail"
    git -C "$checkout" ls-files -z --cached --others --exclude-standard |
        tar -C "$checkout" --null --files-from=- --create | tar -C "$dir$home/runtail" --extract --no-same-owner
    chown --recursive $user:$user "$dir$home"
}

run_there() {
    local dir=$1 name passed=()
    shift
    for name in $(compgen -e | grep -E '^(PIP_.*|https?_proxy|HTTPS?_PROXY|no_proxy|NO_PROXY|CI|RUNTAIL_.*)$'); do
        passed+=("$name=${!name}")
    done
    # The shell in between is the namespace's first process: the kernel would keep an interrupt from a command there.
    # shellcheck disable=SC2016
    exec unshare --mount --pid --fork --kill-child -- sh -c '
        dir=$1 user=$2; shift 2
        mount -t proc proc "$dir/proc"
        mount --rbind /dev "$dir/dev"
        chroot --userspec="$user:$user" "$dir" "$@"
    ' sh "$dir" $user /usr/bin/env -i "HOME=$home" USER=ann LANG=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin \
        "${passed[@]}" sh -c 'cd ~/runtail && exec "$@"' sh "$@"
}

case "${1-}" in
    make) make_machine "$2" ;;
    bare) make_bare "$2" "$3" ;;
    run) run_there "${@:2}" ;;
    *) sed -n 's/^# \{0,1\}//p' "$0" | head -n 10 >&2; exit 2 ;;
esac
