# Debian trees of another release, from wherever this machine's own apt fetches. Sourced by tests/run and tests/vm/run, each of
# which says in `fail` who it is.

# The machine's own Debian mirror: whatever its apt fetches the main archive from.
debian_mirror() {
    apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 2>/dev/null |
        awk '$2 == "main" && $1 !~ /-/ { print $3; exit }'
}

# Makes the folder TREE from a suite, by mmdebstrap with the options that follow. What it says is shown only if it fails.
debian_tree() {
    local tree=$1 suite=$2 mirror scratch
    shift 2
    mirror=$(debian_mirror)
    [ -n "$mirror" ] || apt-get -qq update </dev/null && mirror=$(debian_mirror)
    [ -n "$mirror" ] || fail "apt knows no Debian mirror to take Debian $suite from"
    [ "$(id -u)" = 0 ] || fail "unpacking Debian $suite into $tree needs root; run this script once as root"
    scratch=$(mktemp -d "$tree.XXXXXX")
    {
        apt-config dump | grep -E '^Acquire::https?::' || true
        echo 'Acquire::Check-Valid-Until "false";'
    } >"$scratch/apt.conf"
    if mmdebstrap --quiet --mode=root --aptopt="$scratch/apt.conf" "$@" \
        "$suite" "$scratch/root" "$mirror" >"$scratch/log" 2>&1 </dev/null; then
        rm -rf "$scratch/root/var/lib/apt" "$scratch/root/usr/share/doc" "$scratch/root/usr/share/man"
        mv -T "$scratch/root" "$tree"
    else
        cat "$scratch/log" >&2
    fi
    rm -rf "$scratch"
    [ -d "$tree" ]
}
