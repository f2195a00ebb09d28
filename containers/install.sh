#!/bin/sh
# What the build stage of every image does, in two layers: `dependencies` makes /opt/prunella of the wheels of a lock, `package`
# makes /opt/package of our own wheel. Nothing is fetched.
set -eu

# A layer keeps times in whole seconds, some engines rounded up; what Python compiled knows the second its source began in, and
# is compiled again at every start where the two differ.
in_whole_seconds() {
  python3 -c "import os, pathlib, sys
for path in pathlib.Path(sys.argv[1]).rglob('*.py'):
    second = int(path.stat().st_mtime)
    os.utime(path, (second, second))" "$1"
}

case "$1" in
  dependencies)
    python3 -m venv /opt/pip
    python3 -m venv /opt/prunella
    /opt/prunella/bin/python -m pip install --quiet --no-cache-dir --no-index --no-deps /wheels/*.whl
    /opt/prunella/bin/python -m pip uninstall --quiet --yes pip
    in_whole_seconds /opt/prunella
    ;;
  package)
    # Beside the dependencies, by a pip that stays here, and proven to have what it needs among them.
    /opt/pip/bin/python -m pip --python /opt/prunella/bin/python install --quiet --no-cache-dir --no-index --no-deps \
      --no-warn-script-location --prefix=/opt/package /package/*.whl
    PYTHONPATH="$(echo /opt/package/lib/python3*/site-packages)"
    export PYTHONPATH
    test -d "$PYTHONPATH/prunella"
    /opt/pip/bin/python -m pip --python /opt/prunella/bin/python check
    in_whole_seconds /opt/package
    ;;
  *)
    echo "install.sh: expected dependencies or package, found $1" >&2
    exit 2
    ;;
esac
