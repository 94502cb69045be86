#!/bin/sh
# The project's environment, .venv, and its lock, requirements.txt. `make` runs this; usage: environment.sh install|lock [ARG...]
#
# install  makes .venv hold what requirements.txt pins, nothing else, and this checkout as an editable package. It does nothing
#          while the stamp in .venv fits. The stamp is removed first and written last: an environment without one was
#          interrupted and is made anew (downloads stay in uv's cache).
# lock     rewrites requirements.txt from pyproject.toml; ARG goes to `uv pip compile` (--upgrade for newer versions).
set -eu
cd "$(dirname "$0")/.."
stamp=.venv/.stamp

# Prints the first Python 3.11 among $PYTHON or the usual names; fails with one line that says what was found instead.
find_python() {
    found=
    if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3.11 python3 python; fi
    for name in "$@"; do
        version=$("$name" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue
        case $version in
        3.11.*)
            echo "$name"
            return
            ;;
        esac
        found="${found:+$found, }$name $version"
    done
    echo "This needs Python 3.11 but found ${found:-no Python}; install it, or name it: make PYTHON=/path/to/python3.11" >&2
    return 1
}

# uv does not read pip's configuration: hand over its index and certificates. Not find-links: a folder of wheels may hold a
# torch that does not fit the torchvision of the index.
use_pip_configuration() {
    pip_setting() { .venv/bin/python -m pip config get "global.$1" 2>/dev/null | tr '\n' ' ' || true; }
    index=${PIP_INDEX_URL:-$(pip_setting index-url)}
    extra=${PIP_EXTRA_INDEX_URL:-$(pip_setting extra-index-url)}
    certificates=${PIP_CERT:-$(pip_setting cert)}
    if [ -n "$index" ]; then export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"; fi
    if [ -n "$extra" ]; then export UV_INDEX="${UV_INDEX:-$extra}" UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}"; fi
    if [ -n "$certificates" ]; then export SSL_CERT_FILE="${SSL_CERT_FILE:-$certificates}"; fi
}

# What the environment was made from. The folder counts too: a copied checkout must not run the original's code.
wanted() {
    echo "$PWD ${UV_TORCH_BACKEND:-}"
    cat requirements.txt pyproject.toml scripts/environment.sh | cksum
}

install() {
    if [ "$(cat $stamp 2>/dev/null)" = "$(wanted)" ]; then return; fi
    if ! [ -f $stamp ] || ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
        python=$(find_python)
        echo "Creating .venv" >&2
        "$python" -m venv --clear .venv
    fi
    rm -f $stamp
    if ! [ -x .venv/bin/uv ]; then .venv/bin/python -m pip install --quiet --constraint requirements.txt uv; fi
    use_pip_configuration
    echo "Installing requirements.txt into .venv" >&2
    # One call installs the lock and this package: sync removes whatever it is not told of. Source packages are built with
    # the locked versions too, so that none downloads a second torch.
    echo "-e ." | .venv/bin/uv pip sync --python .venv/bin/python --build-constraints requirements.txt requirements.txt -
    wanted >$stamp
}

lock() {
    use_pip_configuration
    unset UV_TORCH_BACKEND
    .venv/bin/uv pip compile pyproject.toml --quiet --extra dev --python-version 3.11 --output-file requirements.txt \
        --custom-compile-command "make lock" "$@"
}

command=${1:-install}
if [ $# -gt 0 ]; then shift; fi
case $command in
install) install ;;
lock) lock "$@" ;;
*)
    echo "usage: environment.sh install|lock [ARG...]" >&2
    exit 2
    ;;
esac
