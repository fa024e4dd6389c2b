# Sourced by the scripts that are written in Python.
# run SCRIPT MODULE... -- ARGUMENT...: scripts/SCRIPT.py in the environment of this checkout, or of PYTHON. Where there
# is none, or a module is missing in it, one line says so instead of a traceback; the exit code is 4, as tfx's.
run() {
  local script=$1 python=${PYTHON:-$root/.venv/bin/python} needed=()
  shift
  while [ "$1" != -- ]; do needed+=("$1") && shift; done
  shift
  command -v -- "$python" >/dev/null ||
    { echo "$script: $python is not there: scripts/test makes an environment that has all" >&2; exit 4; }
  "$python" - "$script" "${needed[@]}" <<'EOF' || exit 4
import importlib.util, sys
missing = [name for name in sys.argv[2:] if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"{sys.argv[1]} needs {', '.join(missing)}: scripts/test makes an environment that has all")
EOF
  exec "$python" "$root/scripts/$script.py" "$@"
}
