# Sourced by the scripts: $root/.venv with a Python that is new enough, and a way to install into it.
export PIP_DISABLE_PIP_VERSION_CHECK=1
python="$root/.venv/bin/python"

if ! "$python" -c 'import sys' 2>/dev/null; then
  found=""
  for candidate in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      found=$candidate
      break
    fi
  done
  [ -n "$found" ] || { echo "tfx needs Python 3.11 or newer: install it, or name it with PYTHON=..." >&2; exit 1; }
  "$found" -m venv "$root/.venv" ||
    { echo "$found cannot make a virtual environment: apt-get install python3-venv" >&2; exit 1; }
fi

# What setuptools left there of an earlier build would end up in the next wheel.
rm -rf "$root/build"

# install TARGET...: this project, editable, so that a change is seen at once; and its extras.
install() {
  "$python" -m pip install --quiet --constraint "$root/constraints.txt" --editable "$@"
  link_source
}

# The folders as the packages they are, for all that reads files instead of importing: mypy, pyright, coverage.
# Links of our own, listed in no RECORD: pip removes none of them, and none of what they lead to.
link_source() {
  local links="$root/.venv/source" folder
  mkdir -p "$links/tfswa"
  for folder in runtime train export calibration; do ln -sfn "$root/$folder" "$links/tfswa/$folder"; done
  echo "$links" > "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/tfx-source.pth"
}
